"""Fonts for class names in any script."""

import functools
import logging
import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

logger = logging.getLogger(__name__)
_BESIDES = frozenset("0123456789. ")  # for the score beside the name
_NOBODY_HAS = "\U0010ffff"  # not a character: a font draws its glyph for missing ones
_TRIAL_SIZE = 16
_SUFFIXES = (".ttf", ".ttc", ".otf")
_NOT_PLAIN = ("bold", "italic", "oblique", "light", "thin", "black", "condensed", "mono", "serif", "math")
_LISTED = 5


@functools.lru_cache(maxsize=64)
def load_font(path: Path | None, size: int) -> Font:
    """Load a font file, or Pillow's own font for None, at a size in pixels."""
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)


@functools.cache
def fonts_for(names: tuple[str, ...]) -> Mapping[str, Path | None]:
    """Find a font file for each name; None stands for Pillow's own font.

    Names that no font can draw have no entry; one warning lists them.
    """
    found: dict[str, Path | None] = {}
    for path in (None, *_installed_fonts()):
        pending = [name for name in dict.fromkeys(names) if name not in found]
        if not pending:
            break
        try:
            has = characters_of(load_font(path, _TRIAL_SIZE), frozenset("".join(pending)) | _BESIDES)
        except OSError:  # damaged, or only has bitmaps of other sizes
            continue
        found.update({name: path for name in pending if has >= _BESIDES.union(name)})
    missing = [name for name in dict.fromkeys(names) if name not in found]
    if missing:
        more = " ..." if len(missing) > _LISTED else ""
        logger.warning(
            "no font on this machine has all characters of %d class names (%s%s); pictures show their category ids: "
            "install a font for them, such as Noto Sans",
            len(missing),
            ", ".join(missing[:_LISTED]),
            more,
        )
    return found


def characters_of(font: Font, characters: frozenset[str]) -> frozenset[str]:
    """Return the characters that a font can draw, including invisible ones but not control characters."""
    missing = _drawn(font, _NOBODY_HAS)
    kinds = {character: unicodedata.category(character) for character in characters}
    return frozenset(
        character
        for character, kind in kinds.items()
        if kind in ("Cf", "Zs") or (kind[0] != "C" and _drawn(font, character) != missing)
    )


def font_folders() -> Sequence[Path]:
    """Return the folders where this system keeps fonts."""
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("WINDIR", "C:/Windows"), "Fonts"), home / "AppData/Local/Microsoft/Windows/Fonts"
    if sys.platform == "darwin":
        return Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"
    data = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    return *(Path(folder) / "fonts" for folder in data.split(":")), home / ".local/share/fonts", home / ".fonts"


def _installed_fonts() -> list[Path]:
    """Return the font files of this system, plain ones first."""
    files = [file for folder in font_folders() for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES]
    # macOS's LastResort has a box for every character.
    return sorted((file for file in files if "lastresort" not in file.stem.lower()), key=_order)


def _order(file: Path) -> tuple[bool, str]:
    name = file.stem.lower().replace("sansserif", "sans")
    return any(word in name for word in _NOT_PLAIN), name


def _drawn(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
