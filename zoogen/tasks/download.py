"""Fetch source files with torchvision; the only file of this room that imports it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.error import URLError

from zoogen.core.errors import EnvironmentFault, IntegrityError
from zoogen.tasks.sources import Source, file_md5


def download(source: Source, root: Path) -> None:
    """Fetch one file from the first of its addresses that answers, check it, and give it its name below ``root``.

    Raises:
        EnvironmentFault: no address answers, or ``root`` cannot be written.
        IntegrityError: what came is not the published file.
    """
    from torchvision.datasets.utils import download_url

    target = root / source.path
    failures = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Under its final name a file is always whole: it is moved there only after the check.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            for url in source.urls:
                try:
                    download_url(url, folder, target.name)
                except (URLError, RuntimeError, ConnectionError, TimeoutError) as error:
                    failures.append(f"  {url}: {error}")
                    continue
                came = Path(folder) / target.name
                if (found := file_md5(came)) != source.md5:
                    raise IntegrityError(f"{url} sent a file with md5 {found}, published is {source.md5}")
                came.replace(target)
                return
    except OSError as error:
        raise EnvironmentFault(f"cannot write {target}: {error}; choose another data root with ZOOGEN_DATA") from error
    tried = "\n".join(failures)
    raise EnvironmentFault(f"cannot download {source.path}; tried\n{tried}\nplace it at {target} by hand")
