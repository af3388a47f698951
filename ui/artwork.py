"""Pictures for items that have none: a pattern per item, a colour and a shape per category.

Drawn from a hash alone, so an item looks the same everywhere and for ever, and nothing is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_WIDTH = 320
_HEIGHT = 180


def category_hue(categories: Sequence[str]) -> int:
    """The hue (degrees) of an item: its department's, shifted a little by its own category."""
    if not categories:
        return 225
    department = categories[1] if len(categories) > 1 else categories[0]
    return (_digest(department)[0] * 360 // 256 + _digest(categories[-1])[3] % 90 - 45) % 360


def artwork(item_id: str, categories: Sequence[str]) -> str:
    """An SVG picture for an item; holds numbers only, never text from the catalogue."""
    hue = category_hue(categories)
    seed = _digest(item_id)
    spread = 24 + seed[0] % 40
    name = seed.hex()[:10]
    motif = _MOTIFS[(_digest("".join(categories[-1:]))[1] + seed[5] % 3) % len(_MOTIFS)]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="xMidYMid slice" aria-hidden="true">'
        f'<defs><linearGradient id="g{name}" gradientTransform="rotate({seed[1] % 90})">'
        f'<stop offset="0" stop-color="oklch(0.72 0.13 {hue})"/>'
        f'<stop offset="1" stop-color="oklch(0.46 0.14 {(hue + spread) % 360})"/></linearGradient></defs>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="url(#g{name})"/>'
        f'<g fill="none" stroke="#fff" stroke-width="2">{motif(seed)}</g></svg>'
    )


def face(name: str) -> dict[str, str | int]:
    """Initials and hue of a person's face."""
    words = [word for word in name.replace("-", " ").replace("_", " ").split() if word]
    initials = "".join(word[0] for word in words[:2]).upper() or "?"
    return {"initials": initials, "hue": _digest(name)[2] * 360 // 256}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest()


def _rings(seed: bytes) -> str:
    x, y = 60 + seed[2] % 200, 30 + seed[3] % 120
    return "".join(
        f'<circle cx="{x}" cy="{y}" r="{18 + k * (12 + seed[4] % 14)}" opacity="{0.5 - k * 0.06:.2f}"/>'
        for k in range(7)
    )


def _waves(seed: bytes) -> str:
    rise = 12 + seed[2] % 30
    return "".join(
        f'<path opacity="{0.16 + k * 0.05:.2f}" '
        f'd="M-20 {20 + k * 26} q 45 {-rise} 90 0 t 90 0 t 90 0 t 90 0"/>'
        for k in range(7)
    )


def _tiles(seed: bytes) -> str:
    return "".join(
        f'<rect x="{column * 46 + 8}" y="{row * 46 + 4}" width="34" height="34" rx="{seed[1] % 17}" '
        f'fill="#fff" stroke="none" opacity="{(seed[(row * 7 + column) % 16] % 10) / 26:.2f}"/>'
        for row in range(4)
        for column in range(7)
    )


def _rays(seed: bytes) -> str:
    x = seed[2] % _WIDTH
    return "".join(
        f'<path opacity="{0.12 + (seed[k % 16] % 8) / 22:.2f}" d="M{x} {_HEIGHT} L{k * 32 - 40} -10"/>'
        for k in range(13)
    )


def _circuit(seed: bytes) -> str:
    paths = []
    for k in range(8):
        y, turn = 14 + k * 22, 40 + seed[k] % 220
        step = 22 if seed[k + 8] % 2 else -22
        paths.append(
            f'<path opacity="0.38" d="M-4 {y} H{turn} l 14 {step} H{turn + 60}"/>'
            f'<circle cx="{turn + 64}" cy="{y + step}" r="4" opacity="0.7"/>'
        )
    return "".join(paths)


def _peaks(seed: bytes) -> str:
    return "".join(
        f'<path stroke="none" fill="#fff" opacity="{0.10 + k * 0.07:.2f}" '
        f'd="M{-40 + k * 30} 190 L{40 + seed[k] % 90 + k * 50} {50 + k * 22} L{200 + k * 50} 190 Z"/>'
        for k in range(4)
    )


_MOTIFS = (_rings, _waves, _tiles, _rays, _circuit, _peaks)
