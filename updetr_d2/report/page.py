"""Pages from templates, with figures and pictures inside the file."""

import base64
import datetime
import io
from pathlib import Path

import jinja2
import matplotlib.figure
from PIL import Image

TEMPLATES = Path(__file__).parent
PICTURE_WIDTH = 960  # px, at most
JPEG_QUALITY = 88


def render_template(template: str, **values: object) -> str:
    """A page.

    Args:
        template: name of a file beside this one.
        **values: for it; ``written`` is the time.

    Returns:
        HTML.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    written = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    return environment.get_template(template).render(written=written, **values)


def inline_figure(figure: matplotlib.figure.Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return data_url(content.getvalue(), "image/png")


def inline_picture(file: Path) -> str:
    """A picture for the page, smaller in pixels and bytes than the file."""
    with Image.open(file) as image:
        return inline_pixels(image.convert("RGB"))


def inline_pixels(picture: Image.Image) -> str:
    """An RGB picture for the page, made smaller in place."""
    content = io.BytesIO()
    picture.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH))
    picture.save(content, format="JPEG", quality=JPEG_QUALITY)
    return data_url(content.getvalue(), "image/jpeg")


def data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
