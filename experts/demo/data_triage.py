"""Messages to be sorted under labels that the prompt lists; the answer is the label alone."""

from __future__ import annotations

import random

from experts.demo.data_common import (
    CITIES,
    FIRST_NAMES,
    WEEKDAYS,
    Example,
    weighted,
    with_typo,
)
from experts.demo.templates import load_template

MESSAGES = load_template("messages")
PRODUCTS: list[str] = MESSAGES["products"].split(", ")
FAMILIES: dict[str, dict[str, list[str]]] = MESSAGES["families"]
ASKS = {
    "support": (
        "Which queue should this ticket go to",
        "Route this ticket",
        "Assign the support request to a team",
        "Sort this customer message",
        "Which team handles this",
        "Choose the right queue for this message",
    ),
    "sentiment": (
        "What is the sentiment of this review",
        "Classify the sentiment",
        "Is this review's tone",
        "Label the feeling of the text",
        "Sentiment",
        "How does the customer feel",
    ),
    "urgency": (
        "How urgent is this",
        "Set the priority of this ticket",
        "Pick the urgency",
        "Rate the urgency of the message",
        "Priority level",
    ),
    "topic": (
        "What is the topic of this headline",
        "Classify the news item",
        "Which section does this article belong to",
        "Choose the topic",
        "Topic",
    ),
    "spam": (
        "Is this message spam",
        "Classify the email",
        "Filter this message",
        "Decide what kind of message this is",
        "Check this text message",
    ),
    "intent": (
        "What is the intent of this message",
        "Detect the customer's intent",
        "What does the person want",
        "Intent",
    ),
    "emotion": (
        "Which emotion does this text show",
        "What does the writer feel",
        "Label the emotion",
        "Emotion",
    ),
    "department": (
        "Which department should handle this",
        "Forward this request to the right department",
        "Pick the department",
    ),
    "issue": (
        "Label this GitHub issue",
        "What type of issue is this",
        "Triage the issue",
        "Choose the issue label",
    ),
    "review aspect": (
        "Which aspect does the review talk about",
        "What is this comment about",
        "Tag the guest's comment",
    ),
    "email": ("Which folder does this email go into", "Sort this email", "File this mail"),
    "spending": (
        "Which budget category is this expense",
        "Categorise the expense",
        "Tag this transaction",
    ),
    "assistant": (
        "Which skill should handle this voice command",
        "Classify the command",
        "What is this request to a smart home about",
    ),
    "fact or opinion": ("Is this statement a fact or an opinion", "Classify the statement"),
    "toxicity": ("Moderate this comment", "Is this comment fit for our forum"),
    "tone": ("What is the tone of the text", "Judge the register of this message"),
    "language": ("Which language is this", "Detect the language"),
}
GENERAL_ASKS = (
    "Classify this message",
    "Classify the text",
    "Pick the best label",
    "Choose one category for the following",
    "Label this",
    "Assign one label",
    "Which label fits best",
    "Categorise the message",
    "Which of the labels applies",
)
FRAMES = (
    '{ask}: {labels}.\n\n"{text}"',
    "{ask} ({labels}):\n{text}",
    "{ask}. Labels: {labels}.\n\nMessage: {text}",
    "{ask}. Options: {labels}.\nText: {text}",
    "{ask}. Choose from {labels}.\n\n{text}",
    "{ask}? Answer with one of: {labels}.\n\n{text}",
    'Message: "{text}"\n\n{ask}? Labels: {labels}. Reply with the label only.',
    "{text}\n\n{ask}: {labels}?",
    "Labels: {labels}\nMessage: {text}\nLabel:",
    "Categories: {labels}\n\n{text}\n\nCategory?",
    '{ask}: "{text}" Possible labels: {labels}.',
    "{ask}. Use exactly one of these labels: {labels}.\n---\n{text}\n---",
    "Text: {text}\n{ask}. Answer only with {labels}.",
    "You sort messages. {ask}. The labels are {labels}. Only give the label.\n\n{text}",
    '{ask} as {labels}: "{text}"',
    "{ask}. Pick from [{labels}].\nInput: {text}\nOutput:",
    "Given the labels {labels}, {ask_low}.\n{text}",
    'Here is a message: "{text}". {ask}? It must be one of {labels}. One word answer.',
    "{ask}? {labels}\n\n> {text}",
    "Reply with just the label. {ask}: {labels}.\n\n{text}",
)
BULLET_FRAMES = (
    "{ask}:\n{labels}\n\nMessage: {text}",
    "Possible labels:\n{labels}\n\n{ask}: {text}",
    "{text}\n\n{ask}? Choose one:\n{labels}",
)


def filled(rng: random.Random, message: str) -> str:
    return message.format(
        n=rng.choice(FIRST_NAMES),
        p=rng.choice(PRODUCTS),
        o=rng.choice((f"#{rng.randint(1000, 99999)}", f"{rng.randint(10000, 999999)}")),
        c=rng.choice(CITIES),
        d=rng.choice(WEEKDAYS),
    )


def overlapping(options: list[str]) -> bool:
    """Whether one option is part of another, so that an answer could name both."""
    folded = [option.casefold() for option in options]
    return any(a in b for i, a in enumerate(folded) for j, b in enumerate(folded) if i != j)


def styled(rng: random.Random, options: list[str]) -> list[str]:
    """The options in one way of writing labels: plain, capitals, with underscores."""
    style = weighted(rng, ((5, "plain"), (3, "title"), (1, "upper"), (1, "snake")))
    if style == "title":
        return [option[0].upper() + option[1:] for option in options]
    if style == "upper":
        return [option.upper() for option in options]
    if style == "snake":
        return [option.replace(" ", "_").replace("-", "_").lower() for option in options]
    return options


def listed(rng: random.Random, options: list[str]) -> str:
    style = rng.random()
    if style < 0.45:
        return ", ".join(options)
    if style < 0.75:
        return ", ".join(options[:-1]) + f" or {options[-1]}"
    if style < 0.85:
        return " / ".join(options)
    if style < 0.93:
        return ", ".join(f'"{option}"' for option in options)
    return " | ".join(options)


def draw_options(rng: random.Random, family: str, wanted: str) -> tuple[list[str], str]:
    """Two to six labels of the family in a random order, and the one that stands for `wanted`."""
    others = [names for names in FAMILIES[family] if names != wanted]
    rng.shuffle(others)
    count = weighted(rng, ((3, 2), (5, 3), (5, 4), (2, 5), (1, 6)))
    chosen = [wanted, *others[: count - 1]]
    names = [rng.choice(classes.split("|")[: rng.choice((1, 2, 4))]) for classes in chosen]
    if overlapping(names):
        return draw_options(rng, family, wanted)
    names = styled(rng, names)
    right = names[0]
    rng.shuffle(names)
    return names, right


def triage(rng: random.Random) -> Example:
    """One message, its possible labels and the right one."""
    family = rng.choices(list(FAMILIES), [len(classes) ** 0.5 for classes in FAMILIES.values()])[0]
    wanted = rng.choice(list(FAMILIES[family]))
    text = filled(rng, rng.choice(FAMILIES[family][wanted]))
    options, right = draw_options(rng, family, wanted)
    asks = ASKS[family] if rng.random() < 0.65 else GENERAL_ASKS
    ask = rng.choice(asks)
    if rng.random() < 0.08 and family != "language":
        text = with_typo(rng, text.lower())
    values = {"ask": ask, "ask_low": ask[0].lower() + ask[1:], "text": text}
    if rng.random() < 0.15:
        bullet = rng.choice(("- ", "* ", ""))
        labels = "\n".join(bullet + option for option in options)
        prompt = rng.choice(BULLET_FRAMES).format(labels=labels, **values)
    else:
        prompt = rng.choice(FRAMES).format(labels=listed(rng, options), **values)
    if rng.random() < 0.15:
        prompt = prompt[0].lower() + prompt[1:]
    return Example("triage", prompt, right, {"kind": "label", "value": right, "options": options})
