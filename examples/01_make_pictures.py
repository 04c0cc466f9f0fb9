"""Write a folder of pictures to try hotrefresh on: 60 characters in 11 typefaces, and other typefaces as queries.

    python 01_make_pictures.py        writes pictures/ (about 650 files) and queries/ (about 150) in the current folder

One sub-folder a character: pictures in the same sub-folder answer each other. The fonts are those that matplotlib ships.
"""

from pathlib import Path

from models.datasets import list_items, read_item

QUERY_FACES = {"DejaVuSerif-Italic", "DejaVuSansMono-Oblique", "STIXGeneralItalic"}

by_character: dict[str, list] = {}
for item in list_items("glyphs", "gallery").items:
    by_character.setdefault(item.label, []).append(item)
chosen = sorted(label for label, items in by_character.items() if len(items) >= 12)[::23][:60]
for label in chosen:
    for item in by_character[label]:
        face = item.key.partition("/")[0]
        folder = Path("queries" if face in QUERY_FACES else "pictures") / label
        folder.mkdir(parents=True, exist_ok=True)
        read_item(item.uri).resize((64, 64)).save(folder / f"{face}.png")
print(
    *(f"{name}: {len(list(Path(name).rglob('*.png')))} pictures" for name in ("pictures", "queries")),
    sep="\n",
)
