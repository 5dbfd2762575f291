"""Short texts with the JSON keys wanted; the answer is the flat object alone."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass

from experts.demo.data_common import Example, weighted
from experts.demo.field_values import MAKERS, Value
from experts.demo.templates import load_template


@dataclass(frozen=True)
class Domain:
    """`fields` maps a slot to (key names, maker); `texts` are the ways of saying it."""

    fields: dict[str, tuple[str, str]]
    texts: list[str]


DOMAINS = tuple(
    Domain({slot: (keys, maker) for slot, (keys, maker) in kind["fields"].items()}, kind["texts"])
    for kind in load_template("records")
)
ASKS = (
    "Extract {keys} as JSON.",
    "Extract {keys} from the text as JSON.",
    "Return a JSON object with the keys {keys}.",
    "Give me JSON with {keys}.",
    "Give me the {keys} as a JSON object.",
    "Pull out {keys} and answer in JSON.",
    "Fill in a JSON object with these keys: {keys}.",
    "Convert this into JSON with keys {keys}.",
    "Turn the text into JSON. Keys: {keys}.",
    "JSON please, keys {keys}:",
    "Find {keys} in the text below. Output JSON only.",
    "I need {keys} in JSON format from this:",
    "Read the text and output JSON with exactly the keys {keys}.",
    "What are the {keys}? Reply as JSON.",
    "Parse this into a flat JSON object ({keys}).",
    "to json ({keys}):",
    "Please extract the fields {keys}. Answer with JSON and nothing else.",
    "Write down {keys} as JSON.",
    "Could you get {keys} out of this text, as JSON?",
    "Make a JSON object from this message. Use the keys {keys}.",
)
LAYOUTS = (
    "{ask}\n\n{text}",
    "{ask}\n{text}",
    "{ask} {text}",
    "{text}\n\n{ask}",
    "{text}\n{ask}",
    'Text: "{text}"\n{ask}',
    '{ask}\nText: "{text}"',
    "{ask}\n\nText: {text}",
    '"{text}" {ask}',
    "{ask}\n---\n{text}\n---",
    "Input: {text}\n{ask}\nOutput:",
    "From this text: {text}\n\n{ask}",
)
ASIDES = (
    "Thanks for your help.",
    "Please let me know if anything is unclear.",
    "It was raining all day.",
    "Everyone is looking forward to it.",
    "More news will follow soon.",
    "Hope you are well.",
    "We had a long chat about it.",
    "The coffee was excellent, by the way.",
    "That is all I know for now.",
    "Hi there!",
    "Good morning,",
)


def camel(key: str) -> str:
    first, *rest = key.split("_")
    return first + "".join(word.capitalize() for word in rest)


def written_number(rng: random.Random, value: Value) -> str:
    """A number as a text writes it: thousands with a comma now and then, prices with cents."""
    if isinstance(value, int) and abs(value) >= 10_000 and rng.random() < 0.5:
        return f"{value:,}"
    if isinstance(value, float) and round(value, 1) != value:
        return f"{value:.2f}"
    return str(value)


def key_list(rng: random.Random, keys: list[str]) -> str:
    style = weighted(
        rng, ((5, "plain"), (3, "and"), (3, "quoted"), (1, "code"), (1, "braces"), (1, "brackets"))
    )
    if style == "and" and len(keys) > 1:
        return ", ".join(keys[:-1]) + f" and {keys[-1]}"
    if style == "quoted":
        return ", ".join(f'"{key}"' for key in keys)
    if style == "code":
        return ", ".join(f"`{key}`" for key in keys)
    if style == "braces":
        return "{" + ", ".join(f'"{key}": ...' for key in keys) + "}"
    if style == "brackets":
        return "[" + ", ".join(keys) + "]"
    return ", ".join(keys)


def draw_values(rng: random.Random, domain: Domain) -> dict[str, Value]:
    values = {slot: MAKERS[maker](rng) for slot, (_, maker) in domain.fields.items()}
    texts = [value for value in values.values() if isinstance(value, str)]
    return values if len(set(texts)) == len(texts) else draw_values(rng, domain)


def draw_keys(rng: random.Random, domain: Domain, slots: list[str]) -> list[str]:
    keys = [rng.choice(domain.fields[slot][0].split("|")) for slot in slots]
    if rng.random() < 0.12:
        keys = [camel(key) for key in keys]
    return keys if len(set(keys)) == len(keys) else draw_keys(rng, domain, slots)


def extraction(rng: random.Random) -> Example:
    """One text and one to five of its fields, asked for in any order."""
    domain = rng.choice(DOMAINS)
    values = draw_values(rng, domain)
    template = rng.choice(domain.texts)
    held = re.findall(r"\{(\w+)\}", template)
    text = template.format(**{slot: written_number(rng, value) for slot, value in values.items()})
    text = text[0].upper() + text[1:] if rng.random() < 0.9 else text
    if rng.random() < 0.35:
        aside = rng.choice(ASIDES)
        text = rng.choice((f"{aside} {text}", f"{text} {aside}"))
    count = min(len(held), weighted(rng, ((1, 1), (4, 2), (5, 3), (4, 4), (1, 5))))
    slots = rng.sample(held, count)
    if rng.random() < 0.5:
        slots.sort(key=held.index)
    keys = draw_keys(rng, domain, slots)
    answer = {key: values[slot] for key, slot in zip(keys, slots, strict=True)}
    for key, value in answer.items():
        if isinstance(value, str) and text.startswith(value[0].upper() + value[1:]):
            answer[key] = text[: len(value)]
    ask = rng.choice(ASKS).format(keys=key_list(rng, keys))
    if rng.random() < 0.12:
        ask = ask[0].lower() + ask[1:]
    prompt = rng.choice(LAYOUTS).format(ask=ask, text=text)
    check: dict[str, object] = {"kind": "json", "value": answer}
    return Example("extraction", prompt, json.dumps(answer, ensure_ascii=False), check)
