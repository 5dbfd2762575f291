"""What the fields of an extraction are filled with."""

from __future__ import annotations

import random
from collections.abc import Callable

from experts.demo.data_common import CITIES, FIRST_NAMES, LAST_NAMES, MONTHS, WEEKDAYS, full_name
from experts.demo.templates import load_template

Value = str | int | float
PRODUCTS: list[str] = load_template("messages")["products"].split(", ")
Maker = Callable[[random.Random], Value]


def one_of(text: str) -> Maker:
    choices = text.split("|")
    return lambda rng: rng.choice(choices)


def between(low: int, high: int) -> Maker:
    return lambda rng: rng.randint(low, high)


def clock(rng: random.Random) -> str:
    hour, minute = rng.randint(1, 12), rng.choice((0, 15, 30, 45, rng.randint(0, 59)))
    day = f"{rng.randint(6, 22)}:{minute:02d}"
    return rng.choice((day, day, f"{hour} {rng.choice(('am', 'pm'))}", f"{hour}:{minute:02d} pm"))


def date(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 28), rng.randrange(12), rng.randint(2015, 2029)
    name = MONTHS[month]
    return rng.choice(
        (
            f"{name} {day}",
            f"{day} {name}",
            f"{day} {name} {year}",
            f"{name} {day}, {year}",
            f"{year}-{month + 1:02d}-{day:02d}",
            f"{day:02d}/{month + 1:02d}/{year}",
            f"{name[:3]} {day}",
        )
    )


def code(rng: random.Random) -> str:
    letters = "".join(rng.choice("ABCDEFGHKLMNPRSTWXZ") for _ in range(rng.choice((1, 2, 3))))
    digits = rng.randint(100, 99999)
    return rng.choice((f"{letters}-{digits}", f"{letters}{digits}", f"{digits}-{letters}"))


def email(rng: random.Random) -> str:
    first, last = rng.choice(FIRST_NAMES).lower(), rng.choice(LAST_NAMES).lower()
    user = rng.choice(
        (f"{first}.{last}", first, f"{first[0]}{last}", f"{last}{rng.randint(1, 99)}")
    )
    host = rng.choice(
        ["mail", "example", "post", "works", "studio", "acme", "north", "garden", "lab"]
    )
    return f"{user}@{host}.{rng.choice(('com', 'org', 'net', 'co.uk', 'de', 'io'))}"


def phone(rng: random.Random) -> str:
    def digits(count: int) -> str:
        return "".join(rng.choice("0123456789") for _ in range(count))

    return rng.choice(
        (
            f"555-{digits(4)}",
            f"+{rng.randint(1, 49)} {digits(3)} {digits(4)}",
            f"0{digits(3)} {digits(6)}",
            f"({digits(3)}) {digits(3)}-{digits(4)}",
        )
    )


def money(rng: random.Random) -> Value:
    if rng.random() < 0.5:
        return rng.randint(3, 950)
    return round(rng.randint(2, 300) + rng.choice((0.99, 0.5, 0.49, 0.95, 0.25, 0.75)), 2)


def invented_company(rng: random.Random) -> str:
    stem = rng.choice(
        [
            "Nova",
            "Bright",
            "Green",
            "North",
            "Blue",
            "Silver",
            "Apex",
            "Delta",
            "Maple",
            "Quantum",
            "Harbor",
        ]
    )
    tail = rng.choice(
        [
            "Tech",
            "Foods",
            "Logistics",
            "Labs",
            "Media",
            "Motors",
            "Systems",
            "Energy",
            "Bank",
            "Design",
        ]
    )
    ending = rng.choice(("", "", " Ltd", " Inc", " GmbH", " & Co"))
    return rng.choice((f"{stem} {tail}{ending}", f"{rng.choice(LAST_NAMES)} {tail}{ending}"))


def title(rng: random.Random) -> str:
    first = rng.choice(
        [
            "Silent",
            "Last",
            "Hidden",
            "Golden",
            "Lost",
            "Broken",
            "Distant",
            "Winter",
            "Paper",
            "Red",
        ]
    )
    second = rng.choice(
        [
            "River",
            "Garden",
            "House",
            "Letter",
            "Road",
            "Island",
            "Mirror",
            "Song",
            "Forest",
            "Train",
        ]
    )
    return rng.choice((f"The {first} {second}", f"{first} {second}", f"A {second} of Glass"))


MAKERS: dict[str, Maker] = {
    "person": full_name,
    "person2": full_name,
    "first": lambda rng: rng.choice(FIRST_NAMES),
    "age": between(18, 95),
    "city": lambda rng: rng.choice(CITIES),
    "city2": lambda rng: rng.choice(CITIES),
    "job": one_of(
        "nurse|carpenter|teacher|software engineer|chef|photographer|plumber|accountant|pilot|"
        "graphic designer|baker|lawyer|dentist|data analyst|gardener|electrician|translator"
    ),
    "product": lambda rng: rng.choice(PRODUCTS),
    "small": between(2, 12),
    "money": money,
    "code": code,
    "event": one_of(
        "book fair|summer concert|science night|charity run|jazz festival|pottery workshop|"
        "farmers' market|chess tournament|film evening|yoga class|Annual Gala|Spring Conference"
    ),
    "date": date,
    "time": clock,
    "place": one_of(
        "town hall|Riverside Park|city library|Grand Theatre|community centre|old harbour|"
        "Central Station|sports hall|Museum of Art|Rose Cafe|school gym|north car park"
    ),
    "flight": lambda rng: (
        f"{rng.choice(('LH', 'BA', 'AF', 'UA', 'KL', 'SK'))}{rng.randint(10, 9999)}"
    ),
    "gate": lambda rng: f"{rng.choice('ABCDEF')}{rng.randint(1, 60)}",
    "hotel": one_of(
        "Hotel Bellevue|Seaside Inn|Park Hotel|The Old Mill|Grand Plaza|Hotel Aurora|City Lodge"
    ),
    "room": between(1, 540),
    "weekday": lambda rng: rng.choice(WEEKDAYS),
    "restaurant": one_of(
        "Bella Napoli|The Golden Fork|Chez Marie|Lotus Garden|El Toro|Blue Lagoon|Curry House"
    ),
    "company": invented_company,
    "salary": lambda rng: rng.randint(12, 140) * 500,
    "rent": lambda rng: rng.randint(10, 300) * 10,
    "area": between(22, 180),
    "street": lambda rng: (
        f"{rng.randint(1, 240)} "
        f"{rng.choice(('Oak', 'Mill', 'Church', 'High', 'Station', 'Lake', 'Elm', 'Park'))} "
        f"{rng.choice(('Street', 'Road', 'Lane', 'Avenue'))}"
    ),
    "email": email,
    "phone": phone,
    "book": title,
    "year": between(1950, 2026),
    "pages": between(30, 900),
    "rating": lambda rng: rng.choice((rng.randint(2, 10), rng.randint(30, 95) / 10)),
    "minutes": between(5, 180),
    "topic": one_of(
        "budget|product launch|hiring plan|website redesign|safety training|marketing|roadmap|"
        "customer survey|office move|quarterly review"
    ),
    "degrees": between(-9, 38),
    "sky": one_of("sunny|cloudy|rainy|windy|foggy|snowy|partly cloudy|clear|stormy"),
    "wind": between(3, 90),
    "team": one_of("Falcons|Rovers|Eagles|United|Tigers|Wolves"),
    "team2": one_of("Sharks|City|Bears|Rangers|Dragons|Wanderers"),
    "high": between(3, 9),
    "low": between(0, 2),
    "dish": one_of(
        "lentil soup|chicken curry|apple pie|mushroom risotto|fish tacos|vegetable lasagne|"
        "pumpkin bread|beef stew|pancakes"
    ),
    "ingredient": one_of("rice|tomatoes|lentils|potatoes|chicken|flour|mushrooms|salmon|beans"),
    "brand": one_of("Toyota|Ford|Volvo|Honda|Fiat|Skoda|Mazda|Renault|Kia|Opel"),
    "km": lambda rng: rng.choice((rng.randint(5, 250) * 1000, rng.randint(5000, 199999))),
    "colour": one_of("red|blue|black|white|silver|green|grey|brown|yellow|orange"),
    "doctor": lambda rng: f"Dr. {rng.choice(LAST_NAMES)}",
    "symptom": one_of(
        "headache|back pain|a sore throat|fever|a broken finger|dizziness|a cough|a skin rash"
    ),
    "purpose": one_of("rent|concert tickets|dinner|the birthday gift|car repair|piano lessons"),
    "pet": one_of("Bella|Rex|Luna|Milo|Coco|Simba|Daisy|Oscar|Pepper|Biscuit"),
    "animal": one_of("cat|dog|parrot|rabbit|hamster|tortoise|horse|guinea pig"),
    "carrier": one_of("DHL|UPS|FedEx|Royal Mail|GLS|DPD|PostNord"),
    "weight": lambda rng: rng.choice((rng.randint(1, 40), rng.randint(3, 250) / 10)),
    "course": one_of(
        "Biology|Spanish|pottery|Chemistry|creative writing|Algebra|photography|World History|"
        "Python programming|first aid|Economics"
    ),
    "country": one_of(
        "Germany|France|Spain|Canada|Japan|Kenya|Brazil|Norway|India|Portugal|Peru|Egypt"
    ),
    "population": lambda rng: rng.choice((rng.randint(12, 990) * 1000, rng.randint(800, 99999))),
    "river": one_of("Danube|Rhine|Nile|Thames|Seine|Elbe|Tagus|Main|Severn"),
    "belonging": one_of(
        "umbrella|wallet|scarf|backpack|bicycle|key ring|phone case|glove|suitcase"
    ),
    "trainno": lambda rng: f"{rng.choice(('ICE', 'RE', 'IC', 'S', 'EC'))} {rng.randint(1, 990)}",
    "fault": one_of(
        "does not turn on|keeps overheating|makes a loud noise|has a cracked screen|"
        "loses its connection|leaks water|shows a blank display"
    ),
    "plan": one_of("Basic|Pro|Starter|Business|Premium|Family|Team|Enterprise"),
    "grade": one_of("A|B|C|A-|B+|C+|D"),
    "school": one_of(
        "Lincoln High|Westfield College|St Mary's School|Hillside University|Oak Park Academy"
    ),
}
