"""What pyproject.toml cannot say: csrc/ is compiled with CMake into pyuniversal._C, and the folder kernels/ is the package pyuniversal.kernels.

Environment: PYUNIVERSAL_CUDA = 0 or 1 forces the CUDA kernels off or on (default: on where nvcc is), PYUNIVERSAL_STRICT = 1 makes compiler warnings errors.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Configure, compile and put the library where setuptools wants it: in the build folder, or beside the sources for an editable install."""

    def build_extension(self, ext: Extension) -> None:
        # The folder stays, one for each Python: compiling again takes seconds. Paths are passed anew, since an isolated build has its own tools each time.
        folder = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}"
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_INSTALL_PREFIX": Path(self.get_ext_fullpath(ext.name)).resolve().parent,
            "CMAKE_MAKE_PROGRAM": shutil.which("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "PYUNIVERSAL_CUDA": os.environ.get("PYUNIVERSAL_CUDA", "AUTO"),
            "PYUNIVERSAL_STRICT": os.environ.get("PYUNIVERSAL_STRICT", "0"),
        }
        subprocess.check_call(["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *(f"-D{name}={value}" for name, value in options.items())])
        subprocess.check_call(["cmake", "--build", str(folder), "--target", "install"])


class FreshBuild(build_py):
    """Copy the Python files into an empty build folder: setuptools would keep a module there that the sources no longer have, and ship it."""

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib) / "pyuniversal", ignore_errors=True)
        super().run()


setup(
    packages=[*find_packages(include=["pyuniversal", "pyuniversal.*"]), "pyuniversal.kernels"],
    package_dir={"pyuniversal.kernels": "kernels"},
    ext_modules=[Extension("pyuniversal._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": FreshBuild},
)
