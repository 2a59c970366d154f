"""Mesa 25's Vulkan driver for CPUs, lavapipe, unpacked beside the system's own.

`python -m lightwam.sim.robotwin.lavapipe` does it.

SAPIEN finds no device in Debian 12's Mesa 22. Debian's newer package would replace the OpenGL drivers that MuJoCo draws
with, so only its one library is taken, and nothing is installed. Needs apt-get and dpkg, no root.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from lightwam.errors import LightwamError, SetupError
from lightwam.system.files import explain_disk_errors, replace_file

COMMAND = "python -m lightwam.sim.robotwin.lavapipe"
FOLDER = Path(sys.prefix) / "share" / "lightwam" / "lavapipe"
DRIVER_FILE = FOLDER / "lavapipe.json"
"""what Vulkan's loader reads: where the driver is"""
SUITES = {"bookworm": "bookworm-backports", "trixie": "trixie"}
"""Debian's release -> the suite that has Mesa 25"""
PACKAGE, LIBRARY = "mesa-vulkan-drivers", "libvulkan_lvp.so"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "http://deb.debian.org/debian"
NEEDED = "libllvm15 libllvm19 libdrm2 libwayland-client0 libxshmfence1 libx11-xcb1 libxcb-dri3-0 libxcb-present0"
"""Debian packages of the libraries that the driver links to; of LLVM one, by release"""
OTHER_SYSTEM = (
    "install your system's Mesa 25 driver (mesa-vulkan-drivers or vulkan-swrast), and set VK_DRIVER_FILES to its .json"
)


def unpack_driver() -> Path:
    """Download Debian's package, keep its library in `FOLDER`, and return the driver's file.

    SetupError, with what is missing, on another system, without a network, or where a library is missing.
    """
    suite, mirror = SUITES.get(_release("/etc/os-release")), _mirror(Path("/etc/apt"))
    if suite is None:
        got = _release("/etc/os-release") or "no VERSION_CODENAME in /etc/os-release"
        what, expected = "the driver is taken from Debian's packages", f"Debian {' or '.join(SUITES)}"
        raise SetupError(what, got=got, expected=expected, next_step=OTHER_SYSTEM)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _download(folder, f"deb [signed-by={KEYS}] {mirror} {suite} main\n")
        (package,) = folder.glob(f"{PACKAGE}_*.deb")
        _run(["dpkg", "-x", package.name, "root"], folder)
        (library,) = folder.glob(f"root/usr/lib/*/{LIBRARY}")
        if missing := re.findall(r"(\S+) => not found", _run(["ldd", str(library)], folder)):
            step = f"apt install, of these, what is missing: {NEEDED}"
            raise SetupError("libraries of the Vulkan driver are missing", got=", ".join(missing), next_step=step)
        with replace_file(FOLDER / LIBRARY, SetupError) as beside:
            beside.write_bytes(library.read_bytes())
    described = {"library_path": str(FOLDER / LIBRARY), "api_version": "1.4.305"}
    with replace_file(DRIVER_FILE, SetupError) as beside:
        beside.write_text(json.dumps({"file_format_version": "1.0.0", "ICD": described}), encoding="utf-8")
    return DRIVER_FILE


def _download(folder: Path, source: str) -> None:
    """Download the package into `folder` by apt, with lists of its own: the system's stay as they are."""
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    with explain_disk_errors(folder, SetupError):
        (folder / "sources.list").write_text(source, encoding="utf-8")
    options = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
    }
    own = [f"-o{key}={value}" for key, value in options.items()]
    _run(["apt-get", *own, "update"], folder)
    _run(["apt-get", *own, "download", PACKAGE], folder)


def _run(command: list[str], folder: Path) -> str:
    """Return what a command prints; SetupError with its last lines when it fails or is not there."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise SetupError("a command is missing", got=command[0], next_step=OTHER_SYSTEM) from error
    if done.returncode:
        said = "; ".join(done.stderr.strip().split("\n")[-3:])
        words = [word for word in command if not word.startswith("-o")]
        raise SetupError(f"`{' '.join(words)}` failed", got=said, next_step=f"fix that, then {COMMAND}")
    return done.stdout


def _release(path: str) -> str:
    """Return VERSION_CODENAME of an os-release file; "" without one."""
    file = Path(path)
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(r"^VERSION_CODENAME=\"?([\w-]+)", text, re.MULTILINE)
    return found[1] if found else ""


def _mirror(folder: Path) -> str:
    """Return the Debian mirror that the system's own lists name, else Debian's."""
    for file in sorted([*folder.glob("sources.list"), *folder.glob("sources.list.d/*")]):
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
            found = re.search(r"(?:https?|file)://\S*/debian/?(?=\s|$)", line)
            if found and not line.lstrip().startswith("#"):
                return found[0]
    return MIRROR


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{unpack_driver()}\n")
    except LightwamError as error:
        sys.exit(str(error))
