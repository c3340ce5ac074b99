"""The contact sheet shows pictures, captions and what is bad, in one file."""

import base64
import dataclasses
import io
import re

from PIL import Image

from clip_jax.data.tools.preview import preview


def test_pictures_and_captions_are_on_the_page(numbered, settings, tmp_path):
    page = preview(numbered(300, captions=2), settings(), tmp_path / "p.html", count=40).read_text()
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 40 and page.count("c0<br>c1") == 40
    colors = {Image.open(io.BytesIO(base64.b64decode(data))).getpixel((0, 0)) for data in pictures}
    assert len(colors) > 20
    assert "40 of 300 samples" in page and not re.search(r'(src|href)="http', page)


def test_bad_samples_are_shown_as_such(numbered, settings, tmp_path):
    page = preview(numbered(5, frozenset({2})), settings(), tmp_path / "p.html").read_text()
    assert page.count('class="bad"') == 1 and "out-of-sorts" in page and "n/2" in page
    assert "5 of 5 samples, 1 of them unreadable" in page


def test_captions_cannot_inject_markup(numbered, settings, tmp_path):
    class Hostile(numbered):
        def __getitem__(self, index):
            return dataclasses.replace(super().__getitem__(index), captions=("<script>x</script>",))

    page = preview(Hostile(3), settings(), tmp_path / "p.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
