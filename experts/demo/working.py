"""Arithmetic with a short written working, digit by digit, as the maths adapter learns it.

The model reads and writes numbers one digit at a time, so a sum is easy for it when every step
changes one place only: `385 + 47 = 425 + 7 = 432`.
"""

from __future__ import annotations

from fractions import Fraction

Number = Fraction


def shown(value: Number) -> str:
    """A number as people write it: at most four decimals, no trailing zeros."""
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.4f}".rstrip("0")


def terminates(value: Number) -> bool:
    """Whether the number has at most two decimals, so that it can be written exactly."""
    return (value * 100).denominator == 1


def places(value: Number) -> list[Number]:
    """A whole number by its non-zero digits: 405 is [400, 5]; anything else is itself."""
    if value.denominator != 1 or value < 0:
        return [value]
    digits = str(value.numerator)
    parts = [Fraction(int(d) * 10 ** (len(digits) - 1 - i)) for i, d in enumerate(digits)]
    return [part for part in parts if part] or [value]


def total(value: Number, parts: list[Number], sign: str) -> str:
    """The chain that adds (or takes away) `parts` one after the other."""
    chain = ""
    for done, part in enumerate(parts):
        value = value + part if sign == "+" else value - part
        rest = sum(parts[done + 1 :], Fraction(0))
        chain += f" = {shown(value)}" + (f" {sign} {shown(rest)}" if rest else "")
    return chain


def added(a: Number, b: Number) -> str:
    if a < 0 or b < 0 or a.denominator != 1 or b.denominator != 1:
        return f"{shown(a)} + {shown(b)} = {shown(a + b)}"
    large, small = (a, b) if a >= b else (b, a)
    start = f"{shown(a)} + {shown(b)}"
    if (large, small) != (a, b) and len(places(small)) > 1:
        start += f" = {shown(large)} + {shown(small)}"
    return start + total(large, places(small), "+")


def subtracted(a: Number, b: Number) -> str:
    if b > a >= 0:
        return f"{shown(a)} - {shown(b)} = -({subtracted(b, a)}) = {shown(a - b)}"
    return f"{shown(a)} - {shown(b)}" + total(a, places(b), "-")


def multiplied(a: Number, b: Number) -> str:
    start = f"{shown(a)} * {shown(b)}"
    whole = a.denominator == b.denominator == 1 and a > 0 and b > 0
    split, other, flipped = (a, b, False)
    if (len(places(b)), -b) > (len(places(a)), -a):
        split, other, flipped = (b, a, True)
    parts = places(split)
    if not whole or len(parts) == 1 or other in (1, 10, 100, 1000):
        return f"{start} = {shown(a * b)}"
    terms = [
        f"{shown(other)} * {shown(part)}" if flipped else f"{shown(part)} * {shown(other)}"
        for part in parts
    ]
    products = [part * other for part in parts]
    chain = f"{start} = {' + '.join(terms)} = {' + '.join(shown(p) for p in products)}"
    if len(products) == 2:
        return chain + total(products[0], places(products[1]), "+")
    return chain + total(products[0], products[1:], "+")


def divided(a: Number, b: Number) -> str:
    """Long division written as a sum: 864 / 4 = 800 / 4 + 40 / 4 + 24 / 4 = 200 + 10 + 6."""
    quotient = a / b
    start = f"{shown(a)} / {shown(b)}"
    whole = Fraction(quotient.numerator // quotient.denominator)
    parts = places(whole) if whole else []
    if quotient != whole:
        parts = [*parts, quotient - whole]
    if a.denominator != 1 or len(parts) < 2 or b in (10, 100, 1000):
        return f"{start} = {shown(quotient)}"
    terms = " + ".join(f"{shown(part * b)} / {shown(b)}" for part in parts)
    return f"{start} = {terms} = {' + '.join(map(shown, parts))} = {shown(quotient)}"


WORKINGS = {"+": added, "-": subtracted, "*": multiplied, "/": divided}


def result(operator: str, a: Number, b: Number) -> Number:
    """`a operator b`, exactly; ZeroDivisionError as usual."""
    if operator == "+":
        return a + b
    if operator == "-":
        return a - b
    return a * b if operator == "*" else a / b


def worked(operator: str, a: Number, b: Number) -> tuple[str, Number]:
    """The written working of one operation and its result."""
    return WORKINGS[operator](a, b), result(operator, a, b)


def answer_text(steps: list[str], value: Number) -> str:
    """The whole answer: the steps, then the number that counts, last."""
    return f"{', '.join(steps)}. Answer: {shown(value)}"
