"""The classes of the generated scenes, in the order of their contiguous ids: things, then stuff."""

THING_CLASSES = ("ball", "boat", "butterfly", "car", "donut", "fish", "flower", "house")
STUFF_CLASSES = ("grass", "sand", "sky", "water")
# Colors (RGB) that visualizers give to the things and then the stuff.
COLORS = (
    (230, 25, 75),
    (245, 130, 48),
    (255, 225, 25),
    (145, 30, 180),
    (240, 50, 230),
    (70, 240, 240),
    (250, 190, 212),
    (128, 0, 0),
    (60, 180, 75),
    (210, 180, 120),
    (140, 190, 255),
    (0, 90, 200),
)
