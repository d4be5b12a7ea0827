"""The bar of transformers' loader does not show: its tensors are counted on ours."""

from __future__ import annotations

import subprocess
import sys

SOURCE = """
import contextlib, io
import transformers
import workbench as wb
from workbench import progress
from workbench.catalog import locate, resolve

totals = []
class Counting(progress.Bar):
    def update(self, **values):
        super().update(**values)
        if self.title == "weights" and self.total:
            totals.append((self.done, self.total))
progress.Bar = Counting

def said(load):
    with contextlib.redirect_stderr(io.StringIO()) as stream:
        load()
    return stream.getvalue()

folder = str(locate(resolve("tiny-chat")).path)
own = lambda: transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
before = lambda make, given, named: make(*given, **named)
transformers.utils.logging.set_tqdm_hook(before)
assert "Loading weights" in said(own)
ours = said(lambda: wb.load("tiny-chat", engine="transformers").close())
assert "%|" not in ours and "Loading weights" not in ours, ours
assert totals[-1][0] == totals[-1][1] > 10, totals[-1:]
assert "Loading weights" in said(own), "the user's own bar is there again"
assert transformers.utils.logging.set_tqdm_hook(None) is before
print("fine")
"""


def test_the_loader_counts_on_our_bar_and_the_users_own_is_left_alone() -> None:
    done = subprocess.run([sys.executable, "-c", SOURCE], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr
