"""Bare calculations as people type them, with a short working."""

from __future__ import annotations

import random
from fractions import Fraction

from experts.demo.data_common import Example, as_typed, weighted
from experts.demo.working import Number, answer_text, shown, terminates, worked

TIMES, OBELUS = "\u00d7", "\u00f7"
SIGNS = {
    "+": ("+", "+", "+", "plus", "added to", "and"),
    "-": ("-", "-", "-", "minus", "take away", "less"),
    "*": ("*", "*", "x", TIMES, "times", "multiplied by"),
    "/": ("/", "/", OBELUS, "divided by", "over", ":"),
}
SYMBOLS = {"+": ("+",), "-": ("-",), "*": ("*", "x", TIMES), "/": ("/", OBELUS)}
COMMANDS = {
    "+": (
        "Add {a} and {b}",
        "Add {b} to {a}",
        "What is the sum of {a} and {b}?",
        "sum of {a} and {b}",
        "What do {a} and {b} make together?",
        "Find the total of {a} and {b}.",
        "Increase {a} by {b}",
        "What number is {b} more than {a}?",
    ),
    "-": (
        "Subtract {b} from {a}",
        "Take {b} away from {a}",
        "What is the difference between {a} and {b}?",
        "difference of {a} and {b}",
        "What's left if I take {b} from {a}?",
        "Decrease {a} by {b}",
        "What number is {b} less than {a}?",
        "How much more is {a} than {b}?",
    ),
    "*": (
        "Multiply {a} by {b}",
        "Multiply {a} and {b}",
        "What is the product of {a} and {b}?",
        "product of {a} and {b}",
        "What do you get when you multiply {a} with {b}?",
        "how much is {a} lots of {b}",
    ),
    "/": (
        "Divide {a} by {b}",
        "What is {a} split into {b} equal parts?",
        "How many times does {b} go into {a}?",
        "how many {b}s are in {a}",
        "What is the quotient of {a} and {b}?",
        "Share {a} equally between {b}",
    ),
}
FRAMES = (
    "{e}",
    "{e}",
    "{e}?",
    "{e} =",
    "{e} = ?",
    "What is {e}?",
    "What's {e}?",
    "whats {e}",
    "Compute {e}",
    "Compute {e}.",
    "Calculate {e}",
    "Calculate {e}.",
    "calc {e}",
    "How much is {e}?",
    "how much is {e}",
    "Work out {e}",
    "Work out {e} for me",
    "Solve {e}",
    "Solve: {e}",
    "Evaluate {e}.",
    "Can you calculate {e}?",
    "Could you tell me what {e} is?",
    "Tell me {e}",
    "I need {e}",
    "Find {e}.",
    "Give me the result of {e}.",
    "what does {e} equal",
    "What does {e} come to?",
    "{e} equals what?",
    "{e} makes?",
    "quick maths: {e}",
    "My calculator is broken, what's {e}?",
    "Please compute {e} and show only the result.",
    "what do i get for {e}",
    "Result of {e}?",
    "Do the sum: {e}",
)


def whole(rng: random.Random, low: int, high: int) -> Number:
    return Fraction(rng.randint(low, high))


def operands(rng: random.Random, operator: str) -> tuple[Number, Number]:
    """Two numbers of the sizes that people ask about, small ones most often."""
    if operator in "+-":
        top = weighted(rng, ((3, 20), (7, 99), (4, 999), (0.5, 5000)))
        a, b = whole(rng, 2, top), whole(rng, 2, rng.choice((top, min(top, 99), top)))
        if operator == "-" and a < b and rng.random() < 0.9:
            a, b = b, a
        return a, b
    if operator == "*":
        first, second = weighted(
            rng, ((6, (12, 12)), (6, (99, 9)), (2, (99, 99)), (2, (999, 9)), (3, (30, 30)))
        )
        a, b = whole(rng, 2, first), whole(rng, 2, second)
        return (a, b) if rng.random() < 0.6 else (b, a)
    b = whole(rng, 2, weighted(rng, ((5, 9), (5, 12), (3, 25))))
    quotient = whole(rng, 2, weighted(rng, ((6, 12), (4, 50), (2, 150))))
    if rng.random() < 0.12:
        b = Fraction(rng.choice((2, 4, 5, 8, 10, 20)))
        return whole(rng, 3, 200), b
    return quotient * b, b


def comma(rng: random.Random, value: Number) -> str:
    """The number as typed: thousands separators now and then."""
    if value.denominator == 1 and value >= 1000 and rng.random() < 0.3:
        return f"{value.numerator:,}"
    return shown(value)


def finish(prompt: str, steps: list[str], value: Number) -> Example:
    check: dict[str, object] = {"kind": "number", "value": float(value)}
    return Example("arithmetic", prompt, answer_text(steps, value), check)


def one_operation(rng: random.Random) -> Example:
    operator = weighted(rng, ((5, "+"), (5, "-"), (6, "*"), (5, "/")))
    a, b = operands(rng, operator)
    if rng.random() < 0.06 and operator in "+-":
        a, b = a + Fraction(rng.randint(1, 9), 10), b + rng.choice((Fraction(0), Fraction(1, 2)))
        a, b = max(a, b), min(a, b)
    if not terminates(a / b if operator == "/" else a):
        return one_operation(rng)
    step, value = worked(operator, a, b)
    left, right = comma(rng, a), comma(rng, b)
    if rng.random() < 0.25:
        prompt = rng.choice(COMMANDS[operator]).format(a=left, b=right)
    else:
        sign = rng.choice(SIGNS[operator])
        gap = "" if len(sign) == 1 and rng.random() < 0.4 else " "
        prompt = rng.choice(FRAMES).format(e=f"{left}{gap}{sign}{gap}{right}")
    return finish(as_typed(rng, prompt), [step], value)


PERCENT_FRAMES: tuple[str, ...] = (
    "{p}% of {n}",
    "{p} % of {n}",
    "{p} percent of {n}",
    "What is {p}% of {n}?",
    "whats {p}% of {n}",
    "Compute {p}% of {n}",
    "Calculate {p} percent of {n}.",
    "How much is {p}% of {n}?",
    "Find {p}% of {n}.",
    "I need {p}% of {n}",
    "{n} * {p}%",
    "Work out {p} per cent of {n}",
    "tell me {p}% of {n} please",
    "If I take {p}% of {n}, what do I get?",
    "{p}pct of {n}?",
)
OFF_FRAMES = (
    "{n} minus {p}%",
    "What is {n} less {p}%?",
    "Decrease {n} by {p}%",
    "Reduce {n} by {p} percent.",
    "what is {p}% off {n}",
    "{p}% off {n}?",
    "Take {p}% off {n}",
    "price of {n} after a {p}% discount",
)
ON_FRAMES = (
    "{n} plus {p}%",
    "Increase {n} by {p}%",
    "Add {p}% to {n}",
    "What is {n} with {p}% added?",
    "raise {n} by {p} percent",
    "{n} plus {p}% tax?",
)
SHARE_FRAMES = (
    "What percent of {n} is {a}?",
    "{a} is what percent of {n}?",
    "what percentage of {n} is {a}",
    "Express {a} as a percentage of {n}.",
    "{a} out of {n} as a percentage",
    "{a} out of {n} is how many percent?",
)


def percent_steps(share: Number, number: Number) -> tuple[list[str], Number]:
    """Percentage as multiply, then divide by 100, which only moves the point."""
    product_step, product = worked("*", number, share)
    step, value = worked("/", product, Fraction(100))
    return [product_step, step], value


def percentage(rng: random.Random) -> Example:
    share = Fraction(
        weighted(
            rng,
            (
                (5, rng.choice((5, 10, 20, 25, 50, 75))),
                (4, rng.choice((12, 15, 30, 35, 40, 60, 80, 90))),
                (2, rng.randint(1, 99)),
            ),
        )
    )
    number = Fraction(
        weighted(
            rng,
            (
                (4, rng.randint(1, 30) * 10),
                (3, rng.randint(1, 12) * 50),
                (3, rng.randint(10, 400)),
                (1, rng.randint(5, 30) * 100),
            ),
        )
    )
    steps, value = percent_steps(share, number)
    kind = rng.random()
    if kind < 0.62:
        frames = PERCENT_FRAMES
    elif kind < 0.88:
        operator, frames = ("-", OFF_FRAMES) if kind < 0.76 else ("+", ON_FRAMES)
        step, value = worked(operator, number, value)
        steps = [*steps, step]
    else:
        part = value
        if part.denominator != 1:
            return percentage(rng)
        first, product = worked("*", part, Fraction(100))
        second, value = worked("/", product, number)
        prompt = rng.choice(SHARE_FRAMES).format(a=shown(part), n=shown(number))
        return finish(as_typed(rng, prompt), [first, second], value)
    prompt = rng.choice(frames).format(p=shown(share), n=comma(rng, number))
    return finish(as_typed(rng, prompt), steps, value)


NAMED = (
    ("half of {a}", "/", 2),
    ("What is half of {a}?", "/", 2),
    ("a third of {a}", "/", 3),
    ("What is a quarter of {a}?", "/", 4),
    ("one fifth of {a}", "/", 5),
    ("a tenth of {a}", "/", 10),
    ("double {a}", "*", 2),
    ("What is twice {a}?", "*", 2),
    ("triple {a}", "*", 3),
    ("{a} doubled", "*", 2),
    ("three times {a}", "*", 3),
    ("What is {a} tripled?", "*", 3),
)


def named(rng: random.Random) -> Example:
    """Halves, doubles and squares, which are named rather than written with a sign."""
    if rng.random() < 0.3:
        a = whole(rng, 2, rng.choice((12, 15, 30)))
        frame = rng.choice(
            ("{a} squared", "What is {a} squared?", "square of {a}", "{a}^2", "{a}**2")
        )
        step, value = worked("*", a, a)
    else:
        frame, operator, b = rng.choice(NAMED)
        a = whole(rng, 2, 150) * (b if operator == "/" else 1)
        step, value = worked(operator, a, Fraction(b))
    return finish(as_typed(rng, frame.format(a=shown(a))), [step], value)


def small(rng: random.Random, operator: str) -> Number:
    return whole(rng, 2, 12) if operator in "*/" else whole(rng, 2, rng.choice((20, 60, 99)))


def two_operations(rng: random.Random) -> Example:
    """Three numbers and two signs, with the usual precedence or with brackets."""
    first, second = rng.choice("++--**/"), rng.choice("++--**/")
    a, b, c = small(rng, first), small(rng, first), small(rng, second)
    if rng.random() < 0.3:
        a = whole(rng, 10, 300)
    gap = rng.choice((" ", " ", ""))
    s1, s2 = rng.choice(SYMBOLS[first]), rng.choice(SYMBOLS[second])
    words = rng.random() < 0.2
    if words:
        gap = " "
        s1, s2 = rng.choice(SIGNS[first][3:5]), rng.choice(SIGNS[second][3:5])
    brackets = rng.random()
    right_first = (second in "*/" and first in "+-" and brackets < 0.6) or (
        brackets > 0.85 and not words
    )
    if right_first:
        step, inner = worked(second, b, c)
        if inner <= 0:
            return two_operations(rng)
        last, value = worked(first, a, inner)
        right = f"{shown(b)}{gap}{s2}{gap}{shown(c)}"
        closed = brackets > 0.85 or second not in "*/"
        text = f"{shown(a)}{gap}{s1}{gap}{f'({right})' if closed else right}"
    else:
        step, inner = worked(first, a, b)
        last, value = worked(second, inner, c)
        left = f"{shown(a)}{gap}{s1}{gap}{shown(b)}"
        needs = first in "+-" and second in "*/"
        if needs and words:
            return two_operations(rng)
        text = f"{f'({left})' if needs or rng.random() < 0.1 else left}{gap}{s2}{gap}{shown(c)}"
    if not 0 <= value <= 3000 or inner < 0 or inner.denominator != 1 or not terminates(value):
        return two_operations(rng)
    return finish(as_typed(rng, rng.choice(FRAMES).format(e=text)), [step, last], value)


def several_added(rng: random.Random) -> Example:
    numbers = [whole(rng, 2, rng.choice((20, 99))) for _ in range(rng.choice((3, 3, 4)))]
    steps, value = [], numbers[0]
    for number in numbers[1:]:
        step, value = worked("+", value, number)
        steps.append(step)
    listed = ", ".join(map(shown, numbers[:-1])) + f" and {shown(numbers[-1])}"
    frame = rng.choice(("Add {e}", "sum of {e}", "What is the total of {e}?", "Add up {e}."))
    joined = rng.choice((" + ", "+")).join(map(shown, numbers))
    prompt = frame.format(e=listed) if rng.random() < 0.5 else rng.choice(FRAMES).format(e=joined)
    return finish(as_typed(rng, prompt), steps, value)


def arithmetic(rng: random.Random) -> Example:
    """One calculation of any of the sorts above."""
    kind = weighted(
        rng,
        (
            (10, one_operation),
            (4, percentage),
            (4, two_operations),
            (1, named),
            (1, several_added),
        ),
    )
    return kind(rng)
