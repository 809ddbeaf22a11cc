"""Builds the wheel with a compiled library for the CPU: `make wheel`. Everything else is in pyproject.toml.

The library runs on x86-64 Linux with glibc 2.28 or later, every torch from 2.11 on, and every Python. Without
INVOLUTION_WHEEL=1, wheels contain no compiled code, and the operator is compiled at its first use.
"""

import importlib.util
import os
import shlex
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


CSRC = Path("src/involution/csrc")
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-Wno-psabi", "-DCPU_KERNEL", "-DINVOLUTION_NAMESPACE=involution"]
# What GCC 12 takes from later releases of glibc (dlsym 2.34, __libc_single_threaded 2.32) and libstdc++ (two
# constructors, GCC 9). The library defines them, or names the older version of the symbol. They are not linked statically
# with the rest of libstdc++, because exceptions and locales are shared with libtorch.
OLD_SYMBOLS = """
#include <sstream>

template std::basic_ostringstream<char>::basic_ostringstream();
template std::basic_stringstream<char>::basic_stringstream();

extern "C" {
char __libc_single_threaded = 0;  // "there may be other threads": reference counts are atomic

void* old_dlsym(void*, const char*);
__asm__(".symver old_dlsym, dlsym@GLIBC_2.2.5");
void* dlsym(void* handle, const char* name) {
  return old_dlsym(handle, name);
}
}
"""
# Nothing outside uses a symbol of the library: loading it registers the kernels.
SYMBOLS = "{ local: *; };\n"


def compile_library(library: Path, objects: Path) -> None:
    """Compiles the library for torch, from all sources in csrc for the CPU, in `objects`."""
    (torch,) = importlib.util.find_spec("torch").submodule_search_locations
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    objects.mkdir(parents=True, exist_ok=True)
    library.parent.mkdir(parents=True, exist_ok=True)
    (objects / "old_symbols.cpp").write_text(OLD_SYMBOLS)
    (objects / "symbols.map").write_text(SYMBOLS)
    sources = [*sorted(CSRC.rglob("*.cpp")), objects / "old_symbols.cpp"]
    outputs = [objects / f"{source.stem}.o" for source in sources]
    commands = [
        [*compiler, *FLAGS, "-isystem", f"{torch}/include", "-c", source, "-o", output]
        for source, output in zip(sources, outputs)
    ]
    for process in [subprocess.Popen(command) for command in commands]:  # at the same time
        if process.wait() != 0:
            raise SystemExit(f"{shlex.join(map(str, process.args))} failed")
    link = [*compiler, "-shared", *outputs, f"-L{torch}/lib", "-ltorch_cpu", "-o", library]
    subprocess.run([*link, f"-Wl,--version-script={objects}/symbols.map"], check=True)


class BuildLibrary(build_py):
    def run(self):
        super().run()
        objects = Path(self.get_finalized_command("build").build_temp)
        compile_library(Path(self.build_lib) / "involution/lib/involution_cpu.so", objects)


class BinaryDistribution(Distribution):
    def has_ext_modules(self):
        return True


class Wheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]  # the library does not use Python


if os.environ.get("INVOLUTION_WHEEL") == "1":
    setup(distclass=BinaryDistribution, cmdclass={"build_py": BuildLibrary, "bdist_wheel": Wheel})
else:
    setup()
