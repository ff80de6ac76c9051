"""Brings what building for CUDA needs into a directory, without a driver or an installed toolkit.

    python3 toolkit.py DIRECTORY

nvcc, headers, cudart and NVRTC come from PyPI. Of the libraries that only a machine with a GPU has
(the driver's) or that are large (cuBLAS, cuRAND), it makes stubs to link with: libraries of the same
names and functions, each of which fails. Prints CUDA_HOME.
"""

import pathlib
import re
import subprocess
import sys
import venv

PACKAGES = [
    f"nvidia-{name}==13.0.*"
    for name in ("cuda-nvcc", "cuda-crt", "cuda-runtime", "cuda-nvrtc", "cuda-cccl", "nvvm")
]

# What each stub is called when it is linked and when it is loaded, and where cudarc names its functions.
STUBS = {
    "libcuda": ("libcuda.so.1", "driver"),
    "libcublas": ("libcublas.so.13", "cublas"),
    "libcublasLt": ("libcublasLt.so.13", "cublaslt"),
    "libcurand": ("libcurand.so.10", "curand"),
}


def install(directory: pathlib.Path) -> pathlib.Path:
    """Installs the packages and gives them the names that nvcc's users look for."""
    home = directory / "nvidia" / "cu13"
    if not (home / "bin" / "nvcc").exists():
        tools = directory / "venv"
        venv.create(tools, with_pip=True)
        pip = [tools / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--target", directory, *PACKAGES], check=True)
    link(home / "lib64", "lib")
    for name in ("libcudart", "libnvrtc"):
        versions = sorted(path.name for path in (home / "lib").glob(f"{name}.so.*"))
        link(home / "lib" / f"{name}.so", versions[0])
    return home


def link(path: pathlib.Path, target: str) -> None:
    if not path.is_symlink():
        path.symlink_to(target)


def make_stubs(home: pathlib.Path) -> None:
    """Each function returns 999, which the driver calls an unknown error."""
    stubs = home / "lib" / "stubs"
    stubs.mkdir(exist_ok=True)
    bindings = cudarc() / "src"
    for name, (loaded_as, part) in STUBS.items():
        text = (bindings / part / "sys" / "mod.rs").read_text()
        functions = sorted(set(re.findall(r'load::<_F>\(\s*"(\w+)"', text)))
        if not functions:
            raise SystemExit(f"no functions of {name} found in {bindings}: cudarc has changed")
        source = "".join(f"int {function}(void) {{ return 999; }}\n" for function in functions)
        library = stubs / loaded_as
        flags = ["-shared", "-fPIC", f"-Wl,-soname,{loaded_as}", "-x", "c", "-"]
        subprocess.run(["cc", "-o", library, *flags], input=source, text=True, check=True)
        link(stubs / f"{name}.so", loaded_as)


def cudarc() -> pathlib.Path:
    """The source of the bindings that the build uses."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--all-features"]
    metadata = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r'"manifest_path":"([^"]*/cudarc-[^"/]*)/Cargo.toml"', metadata)
    if not found:
        raise SystemExit("cargo metadata names no cudarc")
    return pathlib.Path(found[1])


if __name__ == "__main__":
    home = install(pathlib.Path(sys.argv[1]).resolve())
    make_stubs(home)
    print(home)
