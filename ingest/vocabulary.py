"""What the generated shop sells: departments, product types and the words their titles are made of."""

from __future__ import annotations

from dataclasses import dataclass

BRANDS = (
    *(
        "Aurelo",
        "Brightwell",
        "Cobalt",
        "Dunmore",
        "Everline",
        "Fjordic",
        "Gantry",
        "Halcyon",
        "Ibex",
    ),
    *(
        "Juniper",
        "Kestrel",
        "Lumora",
        "Marlow",
        "Nordkap",
        "Orbita",
        "Pinecrest",
        "Quill",
        "Ravenna",
    ),
    *("Sundial", "Tessera", "Umbra", "Vantage", "Westmark", "Zephyr"),
)
QUALITIES = (
    *(
        "Classic",
        "Compact",
        "Pro",
        "Lite",
        "Plus",
        "Travel",
        "Studio",
        "Everyday",
        "Ultra",
        "Essential",
    ),
    *("Heritage", "Active", "Silent", "Eco", "Premium", "Mini"),
)
FINISHES = (
    "Black",
    "White",
    "Graphite",
    "Silver",
    "Forest Green",
    "Navy",
    "Sand",
    "Copper",
    "Red",
    "Walnut",
)


@dataclass(frozen=True)
class Kind:
    """A product type: its path of categories, its usual price, and the type often bought soon after."""

    department: str
    shelf: str
    name: str
    price: float
    details: tuple[str, ...]
    goes_with: str | None = None


def _kinds(
    department: str, shelf: str, *rows: tuple[str, float, str, str | None]
) -> tuple[Kind, ...]:
    return tuple(Kind(department, shelf, n, p, tuple(d.split("|")), g) for n, p, d, g in rows)


KINDS = (
    *_kinds(
        "Photography",
        "Cameras",
        ("Mirrorless Camera", 780, "24 MP|26 MP|45 MP", "Prime Lens"),
        ("Instant Camera", 95, "with Flash|with Timer", "Camera Bag"),
        ("Action Camera", 240, "4K|5K|Waterproof", "Camera Bag"),
    ),
    *_kinds(
        "Photography",
        "Accessories",
        ("Prime Lens", 390, "35 mm|50 mm|85 mm", "Camera Bag"),
        ("Camera Bag", 55, "Sling|Backpack|Shoulder", None),
        ("Tripod", 70, "Carbon|Aluminium|Tabletop", None),
    ),
    *_kinds(
        "Audio",
        "Headphones",
        ("Over-Ear Headphones", 160, "Noise Cancelling|Open Back|Wireless", "Headphone Stand"),
        ("Earbuds", 80, "True Wireless|Sport|In-Ear", None),
        ("Headphone Stand", 25, "Wood|Steel", None),
    ),
    *_kinds(
        "Audio",
        "Hi-Fi",
        ("Bookshelf Speakers", 280, "Pair|Active Pair", "Stereo Amplifier"),
        ("Turntable", 310, "Belt Drive|Direct Drive", "Bookshelf Speakers"),
        ("Stereo Amplifier", 420, "2 x 50 W|2 x 80 W", None),
    ),
    *_kinds(
        "Computing",
        "Laptops",
        ("Laptop", 950, "13 inch|14 inch|16 inch", "Laptop Sleeve"),
        ("Laptop Sleeve", 30, "13 inch|14 inch|16 inch", None),
        ("USB-C Dock", 120, "8 Ports|11 Ports", None),
    ),
    *_kinds(
        "Computing",
        "Gaming",
        ("Mechanical Keyboard", 110, "Tactile|Linear|Clicky", "Gaming Mouse"),
        ("Gaming Mouse", 60, "Wireless|Ergonomic|Featherweight", "Mouse Mat"),
        ("Mouse Mat", 20, "XL|Hard|Soft", None),
    ),
    *_kinds(
        "Home",
        "Coffee",
        ("Espresso Machine", 430, "Dual Boiler|Manual|Automatic", "Coffee Grinder"),
        ("Coffee Grinder", 130, "Burr|Hand", "Coffee Beans"),
        ("Coffee Beans", 16, "1 kg Dark Roast|500 g Light Roast|1 kg Medium Roast", None),
    ),
    *_kinds(
        "Home",
        "Smart Home",
        ("Smart Bulb", 18, "2-Pack|4-Pack|Colour", "Motion Sensor"),
        ("Motion Sensor", 28, "Indoor|Outdoor", None),
        ("Video Doorbell", 140, "Wired|Battery", "Smart Bulb"),
    ),
    *_kinds(
        "Outdoors",
        "Hiking",
        ("Hiking Boots", 150, "Mid|Low|Waterproof", "Wool Socks"),
        ("Wool Socks", 18, "3 Pairs|Crew", None),
        ("Trekking Backpack", 140, "35 L|50 L|65 L", "Headlamp"),
    ),
    *_kinds(
        "Outdoors",
        "Camping",
        ("Tent", 260, "1 Person|2 Person|4 Person", "Sleeping Bag"),
        ("Sleeping Bag", 120, "Down|3-Season", "Headlamp"),
        ("Headlamp", 40, "400 lm|800 lm Rechargeable", None),
    ),
    *_kinds(
        "Sports",
        "Cycling",
        ("Bike Helmet", 75, "Road|Urban|Trail", "Bike Light"),
        ("Bike Light", 35, "Front|Rear|Set", None),
        ("Cycling Computer", 190, "GPS|Compact", "Bike Light"),
    ),
    *_kinds(
        "Sports",
        "Yoga",
        ("Yoga Mat", 45, "4 mm|6 mm|Cork", "Yoga Blocks"),
        ("Yoga Blocks", 18, "Pair Cork|Pair Foam", None),
        ("Foam Roller", 28, "Smooth|Ridged", None),
    ),
)
