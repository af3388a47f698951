"""Clean the texts and prices of scraped catalogues.

Pages of shops were saved as they were: entities, markup, and scripts or style sheets in place of a
title or price.
"""

from __future__ import annotations

import html
import re

MAX_TITLE = 1000
MAX_PRICE = 1e9
_CONTROL = re.compile("[\x00-\x1f\x7f]+")
_SPACES = re.compile(r"\s{2,}")
_MARKUP = re.compile(r"<!--.*?-->|</?[A-Za-z][^<>]*>", re.DOTALL)
_SCRIPT = re.compile(
    r"<script\b|\bfunction\s*\w*\(|\b(?:var|let|const)\s+\w+\s*=|\b\w+\.\w+\([^)]*\);"
    r"|[\w.#-]\s*\{[^{}]*:[^{}]*\}",
    re.IGNORECASE,
)
"""JavaScript or a rule of a style sheet."""
_AMOUNT = re.compile(
    r"(?:from\s+)?(?:[a-z]{0,3}[$€£¥₹]|[a-z]{2,3}\.?(?=[\s\d]))?\s*"
    r"([.,]?\d[\d.,' \u00a0\u202f]*)"
    r"(?:[$€£¥₹]|[a-z]{2,3}\b)?(?=\s*(?:$|[-\u2013\u2014/+(]|(?:to|per|each)\b))",
    re.IGNORECASE,
)
"""One price, or the first of a range, with its currency before or after."""
_GROUPS = re.compile("[' \u00a0\u202f]")
_COMMA_IS_DECIMAL = re.compile("€|EUR", re.IGNORECASE)


def plain(text: object) -> str | None:
    """A text without markup, entities and control characters; None for others and for an empty one.

    Entities may be escaped twice. Raises ValueError for a script or style sheet.
    """
    if not isinstance(text, str):
        return None
    if "&" in text:
        text = html.unescape(html.unescape(text))
    if _SCRIPT.search(text):
        raise ValueError("is a script or style sheet")
    if "<" in text:
        text = _MARKUP.sub(" ", text)
    cleaned = _CONTROL.sub(" ", text.encode("utf-8", "replace").decode())
    return _SPACES.sub(" ", cleaned).strip()[:MAX_TITLE] or None


def price(value: object) -> float | None:
    """A price, or the lower one of a range; None without one.

    1299.0 of `$1,299.00 - $1,500.00` and of `1.299,00 €`; of a single separator followed by three
    digits, a comma separates thousands, but in euros a point does. Raises ValueError for a text
    that is no price.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _in_range(float(value))
    if not isinstance(value, str) or not value.strip():
        return None
    found = _AMOUNT.match(value.strip())
    if found is None:
        raise ValueError("is not a price")
    return _in_range(_number(found[1], comma=bool(_COMMA_IS_DECIMAL.search(value))))


def _in_range(amount: float) -> float:
    if not 0 <= amount < MAX_PRICE:
        raise ValueError(f"is outside 0 to {MAX_PRICE:,.0f}")
    return amount


def _number(text: str, comma: bool) -> float:
    """The amount; `comma`: a comma before three digits is a decimal one. Raises ValueError."""
    digits = _GROUPS.sub("", text).rstrip(".,")
    last = max(digits.rfind("."), digits.rfind(","))
    if last < 0:
        return float(digits)
    separator, decimals = digits[last], len(digits) - last - 1
    repeated = digits.count(separator) > 1
    if repeated and decimals != 3:
        raise ValueError("is not a price")
    groups = decimals == 3 and (repeated or (separator == ",") != comma)
    digits = digits.replace("." if separator == "," else ",", "")
    return float(digits.replace(separator, "" if groups else "."))
