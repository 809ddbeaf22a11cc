"""The state of a run between its parts."""

import io

import torch
from rednet.training.engine.loop import Progress


def test_seconds_of_the_parts_of_a_run_are_added_for_each_hardware():
    first, checkpoint = Progress(20), io.BytesIO()
    first.add_seconds("1 x abacus", 5.0)
    torch.save(first.state_dict(), checkpoint)
    first.add_seconds("1 x abacus", 100.0)  # lost: the run is killed
    checkpoint.seek(0)
    second = Progress(40)  # on half as many processes, a step has half as many images
    second.load_state_dict(torch.load(checkpoint))
    for hardware, seconds in (("2 x abacus", 1.0), ("1 x abacus", 2.0), ("2 x abacus", 3.0)):
        second.add_seconds(hardware, seconds)
    assert second.total_steps == 20  # of the run: a finished one is not trained further
    assert second.seconds == {"1 x abacus": 7.0, "2 x abacus": 4.0}
