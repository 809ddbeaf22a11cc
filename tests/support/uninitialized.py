"""Whether an operator computes with memory that nothing was written to."""

import os
import platform
import subprocess
import sys


_OVERFLOW = {"x86_64": 8, "aarch64": 4}  # FE_OVERFLOW of <fenv.h>
IS_SUPPORTED = platform.machine() in _OVERFLOW and platform.libc_ver()[0] == "glibc"


def check_not_read(cases: list[str], call: str) -> None:
    """
    Fails if a call overflows in a process whose new memory contains 3e38.

    Args:
        cases: for each of them, Python code of a tuple of arguments, which may use `torch`. Sums of their products must
            not overflow.
        call: Python code, which may use `involution` and `arguments`.
    """
    flag = _OVERFLOW[platform.machine()]
    code = """
import ctypes, involution, torch
torch.set_num_threads(1)
fenv = ctypes.CDLL("libm.so.6")
"""
    for case in cases:
        code += f"""
arguments = {case}
{call}  # compiles the operator if necessary
fenv.feclearexcept({flag})
{call}
print(fenv.fetestexcept({flag}))
"""
    # glibc fills new memory with the complement of this byte: 0x7f.
    memory = {"MALLOC_PERTURB_": str(0x80), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | memory, capture_output=True, text=True)
    assert run.stdout.splitlines() == ["0"] * len(cases), run.stderr
