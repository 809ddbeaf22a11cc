"""Parameters and operations in detection and segmentation: the table in benchmarks/results, the code and the paper."""

import torch
from rednet import count_parameters
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from dense_costs import table


# The paper's: 10^6 parameters, 10^9 operations.
PAPER = {
    ("Faster R-CNN", "convolution", "convolution"): (31.6, 177.9),
    ("Faster R-CNN", "involution", "convolution"): (29.5, 135.0),
    ("Faster R-CNN", "involution", "involution"): (29.0, 91.5),
    ("Mask R-CNN", "convolution", "convolution"): (34.2, 224.2),
    ("Mask R-CNN", "involution", "convolution"): (32.2, 181.3),
    ("Mask R-CNN", "involution", "involution"): (29.5, 104.6),
    ("RetinaNet", "convolution", "convolution"): (27.8, 210.1),
    ("RetinaNet", "involution", "convolution"): (26.3, 199.9),
    ("Semantic FPN", "convolution", "convolution"): (18.5, 293.9),
    ("Semantic FPN", "involution", "convolution"): (16.4, 205.2),
    ("UPerNet", "convolution", "convolution"): (56.4, 1825.6),
}


def not_in_the_paper(name: str, head: str) -> float:
    """10^9 of our operations that its figures leave out, as the text below the table says."""
    if name == "Mask R-CNN" and head == "convolution":
        # Of 100 regions: transposed convolution 2 x 2 from 14 x 14 pixels, and 1 x 1 to 81 classes on 28 x 28.
        return 100 * (14 * 14 * 256 * 256 * 4 + 28 * 28 * 256 * 81) / 1e9
    if name == "UPerNet":
        # The auxiliary head on the third stage, at 1/16 of 1024 x 2048: a convolution 3 x 3 and 1 x 1 to 19 classes.
        return 64 * 128 * (1024 * 256 * 9 + 256 * 19) / 1e9
    return 0.0


def test_table_is_what_the_code_counts_and_the_papers(root):
    text = (root / "benchmarks/results/dense-costs.md").read_text()
    assert text == table(), "write it again: python benchmarks/dense_costs.py > benchmarks/results/dense-costs.md"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    rows = {tuple(row[:3]): [float(cell) for cell in row[3:]] for row in cells[2:]}
    assert rows.keys() == PAPER.keys()
    for row, (_, trained, paper_parameters, macs, paper_macs) in rows.items():
        assert (paper_parameters, paper_macs) == PAPER[row]
        assert round(trained, 1) == paper_parameters, row
        assert abs((macs - not_in_the_paper(row[0], row[2])) / paper_macs - 1) < 0.012, row


def test_upernet_has_a_config(root):
    """Those of the other rows are proved with what trains them."""
    config = AutoConfig.from_pretrained(root / "configs/models/upernet-rednet-50-cityscapes.json")
    with torch.device("meta"):
        model = AutoModelForSemanticSegmentation.from_config(config)
    assert (
        f"| UPerNet | convolution | convolution | {count_parameters(model) / 1e6:.3f} |"
        in (root / "benchmarks/results/dense-costs.md").read_text()
    )
    assert (config.num_labels, config.id2label[18]) == (19, "bicycle")
