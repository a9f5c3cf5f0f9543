"""A picture that is never finished holds nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import multiprocessing, time

import pipelines.reporting.gallery_pictures
from pipelines.reporting.gallery_pictures import PartRenderer, Drawing

class Never:
    def __reduce__(self):  # whoever receives it sleeps: the process that draws does
        return time.sleep, (3600,)

if __name__ == "__main__":
    pipelines.reporting.gallery_pictures._TIME_LIMIT = 3.0
    with PartRenderer() as renderer:
        assert renderer.finish(renderer.start(Drawing(Never(), Never(), Never()))) is None
        assert renderer.start(Drawing(Never(), Never(), Never())) is None
    print(renderer.problem)
"""


def test_a_picture_that_hangs_does_not_hold_the_process(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "no pictures were drawn (VTK didn't finish a picture in 3 s)"
