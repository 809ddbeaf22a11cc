"""Builds the wheel with compiled libraries for the CPU: `make wheel`. Everything else is in pyproject.toml.

The libraries run on x86-64 Linux with glibc 2.28 or later. One is for every torch from 2.11 on, one for onnxruntime; no
library depends on Python. Without INVOLUTION_WHEEL=1, wheels contain no compiled code, and the operator is compiled at
its first use.
"""

import importlib.util
import os
import re
import shlex
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


PACKAGE = Path("src/involution")
KERNELS = ["csrc/cpu/kernels.cpp", "csrc/cpu/kernels_avx2.cpp", "csrc/cpu/kernels_avx512.cpp"]
ADAPTERS = {"cpu": "csrc/involution2d_cpu.cpp", "onnxruntime": "runtimes/onnxruntime.cpp"}
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-ffunction-sections", "-Wno-psabi"]
FLAGS += ["-DCPU_KERNEL", "-DINVOLUTION_NAMESPACE=involution"]
# What GCC 12 takes from later releases of glibc (dlsym 2.34, __libc_single_threaded 2.32) and libstdc++ (two
# constructors, GCC 9). The libraries define them, or name the older version of the symbol. They are not linked statically
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
# What the libraries export: what onnxruntime calls. Loading the library for torch registers its kernels.
EXPORTS = "{ global: RegisterCustomOps; local: *; };\n"


def instructions(source: Path) -> list[str]:
    """The flags for the instructions in a file's pragma. From the pragma alone, GCC 12 makes code that takes up to a third
    longer."""
    names = re.findall(r'^#pragma GCC target\("(.+)"\)', source.read_text(), re.MULTILINE)
    return [f"-m{name}" for name in ",".join(names).split(",") if name]


def compile_libraries(folder: Path, objects: Path) -> None:
    """Compiles `<folder>/involution_<host>.so` for each host."""
    (torch,) = importlib.util.find_spec("torch").submodule_search_locations
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    flags = [*FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    objects.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (objects / "old_symbols.cpp").write_text(OLD_SYMBOLS)
    (objects / "exports.map").write_text(EXPORTS)
    sources = [*(PACKAGE / name for name in [*KERNELS, *ADAPTERS.values()]), objects / "old_symbols.cpp"]
    include = ["-isystem", f"{torch}/include"]
    commands = [
        [*compiler, *flags, *instructions(source), *include, "-c", source, "-o", objects / f"{source.stem}.o"]
        for source in sources
    ]
    for process in [subprocess.Popen(command) for command in commands]:  # at the same time
        if process.wait() != 0:
            raise SystemExit(f"{shlex.join(map(str, process.args))} failed")
    for host, adapter in ADAPTERS.items():
        names = [Path(source).stem for source in [*KERNELS, adapter, "old_symbols.cpp"]]
        link = [*compiler, "-shared", *(objects / f"{name}.o" for name in names)]
        link += ["-Wl,--gc-sections", f"-Wl,--version-script={objects}/exports.map"]
        link += [f"-L{torch}/lib", "-ltorch_cpu"] if host == "cpu" else []
        subprocess.run([*link, "-o", folder / f"involution_{host}.so"], check=True)


class BuildLibraries(build_py):
    def run(self):
        super().run()
        objects = Path(self.get_finalized_command("build").build_temp)
        compile_libraries(Path(self.build_lib) / "involution/lib", objects)


class BinaryDistribution(Distribution):
    def has_ext_modules(self):
        return True


class Wheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]  # no library uses Python


if os.environ.get("INVOLUTION_WHEEL") == "1":
    setup(distclass=BinaryDistribution, cmdclass={"build_py": BuildLibraries, "bdist_wheel": Wheel})
else:
    setup()
