"""Readers of the data sets, on small trees in the layouts as released, and how the sets are split."""

import csv
import io
import math
import unicodedata
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from PIL import Image
from scipy.io import savemat

from iqguide.training.datasets import READERS, load_dataset, official_split, seeded_splits


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_csv(path: Path, *rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_xlsx(path: Path, rows, sheet=None, corner=(1, 1)) -> None:
    """A workbook whose table starts at a corner (row, column), with a first sheet of no interest if one is named."""
    book = openpyxl.Workbook()
    page = book.active if sheet is None else book.create_sheet(sheet)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            page.cell(corner[0] + i, corner[1] + j, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def cells(*texts):
    """A MATLAB cell array of texts, a column."""
    found = np.empty((len(texts), 1), dtype=object)
    for i, text in enumerate(texts):
        found[i, 0] = text
    return found


# --- one tree per data set ---


def live_challenge(root):
    names = [*(f"t{i}.bmp" for i in range(1, 8)), "3.bmp", "1024.JPG", "5.bmp"]
    touch(root, "Images/3.bmp", "Images/1024.jpg", "Images/5.bmp")  # the training pictures are absent
    (root / "Data").mkdir()
    mos = np.array([[10.0] * 7 + [63.5, 20.0, 92.0]])
    savemat(root / "Data/AllImages_release.mat", {"AllImages_release": cells(*names)})
    savemat(root / "Data/AllMOS_release.mat", {"AllMOS_release": mos})
    savemat(root / "Data/AllStdDev_release.mat", {"AllStdDev_release": mos / 4})


def koniq(root):
    touch(root, *(f"{size}/{name}.jpg" for size in ("1024x768", "512x384") for name in "abcd"))
    counts = [0, 0, 25, 73, 7, 105]
    header = ["image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD"]
    rows = [[f"{name}.jpg", *counts, mos, 0.5] for name, mos in zip("abcd", (1.5, 2.5, 3.0, 4.5), strict=True)]
    table = [[*header, "MOS_zscore"], *([*row, 50.0] for row in rows)]
    write_csv(root / "koniq10k_scores_and_distributions.csv", *table)
    sets = ("training", "training", "validation", "test")
    table = [[*header, "set"], *([*row[:7], row[7] * 20, row[8], part] for row, part in zip(rows, sets, strict=True))]
    write_csv(root / "koniq10k_distributions_sets.csv", *table)


def spaq(root):
    touch(root, "TestImage/00001.jpg", "TestImage/00002.jpg")
    header = ["Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"]
    rows = [header, ["00001.jpg", 48.86, 1, 2, 3, 4, 5], ["00002.jpg", 62.5, 1, 2, 3, 4, 5]]
    write_xlsx(root / "Annotations/MOS and Image attribute scores.xlsx", rows)


def flive(root):
    names = ("voc_emotic_ava/a.jpg", "EE371R/b.jpg", "blur_dataset/c.jpg")
    touch(root, *(f"database/{name}" for name in names))
    rows = [[name, mos, 0.1] for name, mos in zip(names, (71.2, 40.0, 65.0), strict=True)]
    write_csv(root / "labels_image.csv", ["name", "mos", "zscore"], *rows)
    write_csv(root / "labels>640.csv", ["name_image", "mos_image"], [names[1], 40.0])


def kadid(root):
    touch(root, "images/I01.png", "images/I02.png", *(f"images/I0{r}_01_0{i}.png" for r in (1, 2) for i in (1, 2)))
    rows = [[f"I0{r}_01_0{i}.png", f"I0{r}.png", 5 - i - r / 2, 0.25] for r in (1, 2) for i in (1, 2)]
    write_csv(root / "dmos.csv", ["dist_img", "ref_img", "dmos", "var"], *rows)


def tid2013(root):
    touch(root, "reference_images/I01.BMP", "reference_images/i25.bmp")
    touch(root, "distorted_images/i01_01_1.bmp", "distorted_images/I25_24_5.bmp")
    (root / "mos_with_names.txt").write_text("5.51429 I01_01_1.bmp\n3.00000 i25_24_5.bmp\n")


def csiq(root):
    touch(root, "src_imgs/1600.png", "src_imgs/boston.png")
    touch(root, "dst_imgs/awgn/1600.AWGN.1.png", "dst_imgs/jpeg2000/boston.jpeg2000.5.png")
    touch(root, "dst_imgs/blur/1600.BLUR.3.png", "dst_imgs/jpeg/boston.JPEG.2.png")
    touch(root, "dst_imgs/fnoise/boston.fnoise.4.png", "dst_imgs/contrast/1600.contrast.1.png")
    rows = [
        ["image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"],
        [1600, 1, "noise", 1, 0.05, 0.062],
        ["boston", 3, "jpeg 2000", 5, 0.05, 0.9],
        [1600, 5, "blur", 3, 0.05, 0.5],
        ["boston", 2, "jpeg", 2, 0.05, 0.25],
        ["boston", 4, "fnoise", 4, 0.05, 0.75],
        [1600, 6, "contrast", 1, 0.05, 0.125],
    ]
    write_xlsx(root / "csiq.DMOS.xlsx", rows, sheet="all_by_image", corner=(4, 4))


def live(root):
    counts = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
    touch(root, *(f"{folder}/img{i}.bmp" for folder, count in counts.items() for i in range(1, count + 1)))
    touch(root, "refimgs/bikes.bmp", "refimgs/womanhat.bmp")
    scores, originals = np.linspace(-2, 111, 982)[None], np.zeros((1, 982))
    originals[0, [0, 227]] = 1
    savemat(root / "dmos_realigned.mat", {"dmos_new": scores, "orgs": originals, "dmos_std": scores / 10})
    sources = cells(*(["bikes.bmp", "womanhat.bmp"] * 491)).T
    savemat(root / "refnames_all.mat", {"refnames_all": sources})


def agiqa_3k(root):
    touch(root, "images/AttnGAN_normal_000.jpg", "images/sd1.5_highcorr_000.jpg", "images/x.jpg")
    header = "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align".split(",")
    rows = [
        ["AttnGAN_normal_000.jpg", "statue of a man", "", "", "", 0.9656, 0.22, 0.4, 0.6],
        ["sd1.5_highcorr_000.jpg", "statue of a man", "", "", "", 3.5, 0.2, 0.4, 0.6],
        ["x.jpg", "a tray, of sushi", "", "", "", 2.0, 0.2, 0.4, 0.6],
    ]
    write_csv(root / "data.csv", header, *rows)


def agiqa_1k(root):
    touch(root, "file/deepai_0_0.png", "file/dreamStudio_1_1.png")
    rows = [["Image", "Prompt", "MOS"], ["deepai_0_0.png", "bird", 2.5], ["dreamStudio_1_1.png", "cat", 3.75]]
    write_xlsx(root / "AIGC_MOS_Zscore.xlsx", rows)


def csv_table(root):
    touch(root, "a.png", "images/b.png", "c.png", "r.png")
    rows = [["a.png", 10, 1, "r.png", "train"], ["b.png", 30, "", "", "test"], ["c.png", 20, 2, "", "train"]]
    write_csv(root / "mos.csv", ["image", "mos", "std", "reference", "split"], *rows)


TREES = {
    "live-challenge": live_challenge,
    "koniq-10k": koniq,
    "spaq": spaq,
    "flive": flive,
    "kadid-10k": kadid,
    "tid2013": tid2013,
    "csiq": csiq,
    "live": live,
    "agiqa-3k": agiqa_3k,
    "agiqa-1k": agiqa_1k,
    "csv": csv_table,
}


@pytest.fixture
def tree(tmp_path):
    """Build the tree of a data set -> its root."""

    def tree(name):
        root = tmp_path / name
        root.mkdir()
        TREES[name](root)
        return root

    return tree


def normalised(samples):
    return [round(sample.normalised_mos, 6) for sample in samples]


def names(samples):
    return [sample.image.name for sample in samples]


def test_every_data_set_has_a_tree_here():
    assert READERS.keys() == TREES.keys()


@pytest.mark.parametrize("name", TREES)
def test_every_picture_exists_and_every_score_is_between_0_and_1(tree, name):
    samples = load_dataset(name, tree(name))
    assert all(sample.image.is_file() for sample in samples)
    assert all(0 <= sample.normalised_mos <= 1 for sample in samples)
    assert all(sample.part in (None, "train", "validation", "test") for sample in samples)


def test_live_challenge(tree):
    samples = load_dataset("live-challenge", tree("live-challenge"))
    assert names(samples) == ["3.bmp", "1024.jpg", "5.bmp"]  # the seven training pictures are left out
    assert normalised(samples) == [0.635, 0.2, 0.92]
    assert samples[0].std == 63.5 / 4


def test_koniq(tree):
    root = tree("koniq-10k")
    samples = load_dataset("koniq-10k", root)
    assert {sample.image.parent.name for sample in samples} == {"1024x768"}
    assert normalised(samples) == [0.125, 0.375, 0.5, 0.875]  # 1 to 5
    assert [sample.part for sample in samples] == ["train", "train", "validation", "test"]
    train, test = official_split(samples)
    assert (train.tolist(), test.tolist()) == ([0, 1, 2], [3])
    (root / "koniq10k_scores_and_distributions.csv").unlink()
    samples = load_dataset("koniq-10k", root)
    assert normalised(samples) == [0.3, 0.5, 0.6, 0.9]  # 0 to 100 in this table
    assert samples[3].part == "test"


def test_spaq(tree):
    samples = load_dataset("spaq", tree("spaq"))
    assert normalised(samples) == [0.4886, 0.625]
    assert names(samples) == ["00001.jpg", "00002.jpg"]


def test_flive(tree):
    root = tree("flive")
    samples = load_dataset("flive", root)
    assert normalised(samples) == [0.712, 0.4, 0.65]
    assert official_split(samples)[1].tolist() == [1]
    (root / "labels>640.csv").unlink()
    assert {sample.part for sample in load_dataset("flive", root)} == {None}


def test_kadid_scores_are_higher_for_better_pictures(tree):
    samples = load_dataset("kadid-10k", tree("kadid-10k"))
    assert normalised(samples) == [0.625, 0.375, 0.5, 0.25]
    assert [sample.reference.name for sample in samples] == ["I01.png", "I01.png", "I02.png", "I02.png"]
    assert samples[0].std == 0.5


def test_tid2013_whatever_the_case_of_its_names(tree):
    samples = load_dataset("tid2013", tree("tid2013"))
    assert [sample.image.name for sample in samples] == ["i01_01_1.bmp", "I25_24_5.bmp"]
    assert [sample.reference.name for sample in samples] == ["I01.BMP", "i25.bmp"]
    assert normalised(samples) == [round(5.51429 / 9, 6), round(1 / 3, 6)]


def test_csiq_scores_are_turned_round(tree):
    samples = load_dataset("csiq", tree("csiq"))
    assert names(samples) == [
        *("1600.AWGN.1.png", "boston.jpeg2000.5.png", "1600.BLUR.3.png"),
        *("boston.JPEG.2.png", "boston.fnoise.4.png", "1600.contrast.1.png"),
    ]
    assert normalised(samples) == [0.938, 0.1, 0.5, 0.75, 0.25, 0.875]
    assert samples[1].reference.name == "boston.png"


def test_live_scores_are_turned_round_and_originals_left_out(tree):
    samples = load_dataset("live", tree("live"))
    assert len(samples) == 980
    assert "jp2k/img1.bmp" not in {f"{s.image.parent.name}/{s.image.name}" for s in samples}
    assert samples[0].image.name == "img2.bmp"
    assert samples[0].normalised_mos == 1  # the lowest difference score that is left
    assert samples[-1].normalised_mos == 0
    assert samples[0].reference.name == "womanhat.bmp"


def test_agiqa_groups_by_prompt(tree):
    samples = load_dataset("agiqa-3k", tree("agiqa-3k"))
    assert normalised(samples) == [0.19312, 0.7, 0.4]
    assert samples[0].group == samples[1].group != samples[2].group
    assert normalised(load_dataset("agiqa-1k", tree("agiqa-1k"))) == [0.5, 0.75]


def test_own_table(tree):
    root = tree("csv")
    samples = load_dataset("csv", root)
    assert normalised(samples) == [0, 1, 0.5]
    assert normalised(load_dataset("csv", root / "mos.csv", scale=(0, 100))) == [0.1, 0.3, 0.2]
    assert normalised(load_dataset("csv", root, scale=(100, 0))) == [0.9, 0.7, 0.8]
    assert [sample.std for sample in samples] == [1, None, 2]
    assert samples[0].reference == root / "r.png"
    assert samples[1].image == root / "images" / "b.png"
    assert official_split(samples)[1].tolist() == [1]


# --- score lists of others ---


@pytest.mark.data
def test_official_list_of_agiqa_3k(data_dir, tmp_path):
    source = data_dir / "mos-lists/agiqa-3k/data.csv"
    if not source.is_file():
        pytest.skip("no mos-lists/ in IQGUIDE_DATA")
    (tmp_path / "data.csv").write_bytes(source.read_bytes())
    rows = list(csv.DictReader(io.StringIO(source.read_text("utf-8"))))
    touch(tmp_path, *(f"file/{row['name']}" for row in rows))
    samples = load_dataset("agiqa-3k", tmp_path)
    assert [sample.mos for sample in samples] == [float(row["mos_quality"]) for row in rows]
    assert len({sample.group for sample in samples}) == len({row["prompt"] for row in rows})


@pytest.mark.data
@pytest.mark.parametrize("name", ["KonIQ-10k", "SPAQ", "KADID-10k", "TID2013", "CSIQ"])
def test_published_scores_fit_the_scale_and_come_out_as_they_are(data_dir, tmp_path, name):
    """Real names and scores, put into the layout as released by the test."""
    source = data_dir / f"mos-lists/icbcbicc/{name}.txt"
    if not source.is_file():
        pytest.skip("no mos-lists/ in IQGUIDE_DATA")
    rows = [
        (Path(row["dis_img_path"]), row.get("ref_img_path"), float(row["score"]))
        for row in csv.DictReader(io.StringIO(source.read_text("utf-8")))
    ]
    touch(tmp_path, *(str(path.relative_to(path.parts[0])) for path, _, _ in rows if name != "SPAQ"))
    touch(tmp_path, *(str(Path(*Path(ref).parts[1:])) for _, ref, _ in rows if ref))
    if name == "KonIQ-10k":
        table = [[path.name, mos, 0.5] for path, _, mos in rows]
        write_csv(tmp_path / "koniq10k_scores_and_distributions.csv", ["image_name", "MOS", "SD"], *table)
    elif name == "SPAQ":
        touch(tmp_path, *(f"TestImage/{path.name}" for path, _, _ in rows))
        table = [["Image name", "MOS"], *([path.name, mos] for path, _, mos in rows)]
        write_xlsx(tmp_path / "Annotations/MOS and Image attribute scores.xlsx", table)
    elif name == "KADID-10k":
        table = [[path.name, Path(ref).name, mos, 1.0] for path, ref, mos in rows]
        write_csv(tmp_path / "dmos.csv", ["dist_img", "ref_img", "dmos", "var"], *table)
    elif name == "TID2013":
        (tmp_path / "mos_with_names.txt").write_text("".join(f"{mos} {path.name}\n" for path, _, mos in rows))
    else:
        kinds = {"awgn": "noise", "jpeg2000": "jpeg 2000"}
        table = [["image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"]]
        for path, _, mos in rows:
            image, kind, level = path.stem.split(".")
            kind = kinds.get(kind.lower(), kind.lower())
            table.append([int(image) if image.isdigit() else image, 1, kind, int(level), 0.1, mos])
        write_xlsx(tmp_path / "csiq.DMOS.xlsx", table, "all_by_image", (4, 4))
    samples = load_dataset(name.lower(), tmp_path)
    assert len(samples) == 200
    assert {sample.image.name: sample.mos for sample in samples} == {path.name: mos for path, _, mos in rows}
    order = np.argsort([sample.mos for sample in samples])
    rising = np.diff([samples[i].normalised_mos for i in order])
    assert (rising <= 0).all() if name == "CSIQ" else (rising >= 0).all()


@pytest.mark.data
def test_live_challenge_part_as_a_table(data_dir):
    if not (data_dir / "live-challenge/mos.csv").is_file():
        pytest.skip("no live-challenge/ in IQGUIDE_DATA")
    samples = load_dataset("csv", data_dir / "live-challenge", scale=(0, 100))
    assert len(samples) == 697
    assert samples[0].normalised_mos == pytest.approx(samples[0].mos / 100)
    assert samples[0].std > 0


# --- splits ---


def test_seeded_splits_keep_references_together(tree):
    samples = load_dataset("live", tree("live"))
    for train, test in seeded_splits(samples):
        assert not {samples[i].group for i in train} & {samples[i].group for i in test}
        assert len(train) + len(test) == len(samples)


def test_seeded_splits_hold_out_a_fifth_and_differ(tmp_path):
    touch(tmp_path, *(f"{i}.png" for i in range(50)))
    write_csv(tmp_path / "mos.csv", ["image", "mos"], *([f"{i}.png", i] for i in range(50)))
    samples = load_dataset("csv", tmp_path)
    splits = seeded_splits(samples)
    assert [len(test) for _, test in splits] == [10] * 10
    assert len({tuple(test) for _, test in splits}) == 10
    again = seeded_splits(samples)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(splits, again, strict=True))


def test_sets_that_cannot_be_split(tree):
    with pytest.raises(ValueError, match="no official test part"):
        official_split(load_dataset("spaq", tree("spaq")))
    samples = [sample for sample in load_dataset("csiq", tree("csiq")) if sample.group == "1600"]
    with pytest.raises(ValueError, match="all pictures have one reference"):
        seeded_splits(samples)


# --- bad input ---


def one_sentence(error):
    return "\n" not in str(error) and len(str(error)) < 400 and str(error).endswith(".")


def refused(name, root, kind, message, **options):
    with pytest.raises(kind, match=message) as info:
        load_dataset(name, root, **options)
    assert one_sentence(info.value), str(info.value)


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        ([["a.png", 1], ["gone.png", 2]], FileNotFoundError, r"1 of 2 pictures are missing \(first: .*gone\.png\)"),
        ([["a.png", 1], ["c.png", 2], ["a.png", 3]], ValueError, r"a\.png comes more than once in .*list it once"),
        ([["a.png", 2], ["c.png", 2]], ValueError, "all 2 scores in .* are 2; nothing can be learnt"),
        ([["a.png", 2], ["c.png", "nan"]], ValueError, r"the score of c\.png is nan; expected a finite number"),
        ([["a.png", 2], ["c.png", "inf"]], ValueError, r"the score of c\.png is inf"),
        ([["a.png", 2], ["c.png", "good"]], ValueError, r"the score of c\.png is 'good'; expected a number"),
        ([["a.png", 2], ["c.png", ""]], ValueError, r"the score of c\.png is ''"),
        ([["a.png", 2]], ValueError, "lists 1 pictures; expected two or more"),
        ([], ValueError, "has a header and no rows"),
    ],
)
def test_bad_tables_are_one_sentence(tree, rows, kind, message):
    root = tree("csv")
    write_csv(root / "mos.csv", ["image", "mos"], *rows)
    refused("csv", root, kind, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'image,mos\na.png,1\n"c.png,2\n', r"line 3 of .*mos\.csv cannot be read .*lonely quotation mark"),
        (b"image,mos\na.png,1\nc.png\n", r"line 3 of .*mos\.csv has no mos; expected a cell for every column"),
        (b"picture,score\na.png,1\nc.png,2,5\n", r"mos\.csv has no column"),
        (b"image,mos\na.png,1\nc.png,2,5\n", r"line 3 of .*mos\.csv has more cells than the header"),
        (b"image,mos\na.png,1\n\xe9.png,2\n", r"line 3 of .*mos\.csv is no UTF-8 text; save the table as UTF-8"),
    ],
)
def test_damaged_tables_name_the_line(tree, text, message):
    root = tree("csv")
    (root / "mos.csv").write_bytes(text)
    refused("csv", root, ValueError, message)


def test_cells_that_are_not_needed_may_be_missing(tree):
    root = tree("csv")
    (root / "mos.csv").write_text("image,mos,std\na.png,1\nc.png,2,0.5\nimages/b.png,3,1,\n")
    assert [sample.std for sample in load_dataset("csv", root)] == [None, 0.5, 1]


def test_damaged_lists_of_other_data_sets(tree):
    root = tree("tid2013")
    (root / "mos_with_names.txt").write_text("5.51429 I01_01_1.bmp\n3.0 i25_24_5.bmp 7\n")
    refused("tid2013", root, ValueError, r"line 2 of .*mos_with_names\.txt has 3 words; expected a score and a name")
    root = tree("csiq")
    header = ["image", "dst_type", "dst_lev", "dmos_std", "dmos"]
    write_xlsx(root / "csiq.DMOS.xlsx", [header, [1600, "noise", None, 0.05, 0.062]], "all_by_image")
    refused("csiq", root, ValueError, r"the level of 1600 in csiq\.DMOS\.xlsx is None; expected a number")


def test_tables_of_the_wrong_kind(tree, tmp_path):
    root = tree("csv")
    write_csv(root / "mos.csv", ["picture", "score"], ["a.png", 1])
    refused("csv", root, ValueError, r"mos\.csv has no column 'image'; expected image, mos, got picture, score")
    write_csv(root / "mos.csv", ["image", "mos", "split"], ["a.png", 1, "tarin"], ["c.png", 2, "test"])
    refused("csv", root, ValueError, r"the split of a\.png is 'tarin'; expected one of training, train")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        load_dataset("csv", tmp_path / "nowhere.csv")
    refused("kadid-10k", root, FileNotFoundError, r"has no dmos\.csv; expected the data set as it was released")
    refused("koniq", root, ValueError, "unknown data set 'koniq'; expected one of live-challenge, koniq-10k")


def test_scores_outside_the_scale(tree):
    root = tree("csv")
    refused("csv", root, ValueError, r"b\.png is 30, outside the scale from 0 \(worst\) to 20 \(best\)", scale=(0, 20))
    refused("csv", root, ValueError, "the scale is from 3 to 3; expected two different numbers", scale=(3, 3))
    refused("csv", root, ValueError, "two different numbers", scale=(0, math.nan))


def test_missing_reference(tree):
    root = tree("kadid-10k")
    (root / "images/I02.png").unlink()
    refused("kadid-10k", root, FileNotFoundError, r"1 of 6 pictures are missing \(first: .*I02\.png\)")


def test_damaged_files(tree):
    root = tree("spaq")
    path = root / "Annotations/MOS and Image attribute scores.xlsx"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("spaq", root, ValueError, "cannot be read as an Excel file")
    write_xlsx(path, [["name", "score"], ["00001.jpg", 1]])
    refused("spaq", root, ValueError, "has no column 'Image name'; expected Image name, MOS, got name, score")
    root = tree("csiq")
    write_xlsx(root / "csiq.DMOS.xlsx", [["image"]])
    refused("csiq", root, ValueError, "has no sheet 'all_by_image'; expected it among Sheet")
    root = tree("live-challenge")
    path = root / "Data/AllMOS_release.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(20))
    refused("live-challenge", root, ValueError, "cannot be read as a MATLAB file")
    savemat(path, {"mos": [1.0]})
    refused("live-challenge", root, ValueError, "has no variable 'AllMOS_release'")


# --- tables as people write them ---


def folder_of_pictures(root, names):
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (index * 50, 0, 0)).save(path)
    return root


def test_a_header_that_repeats_a_column_is_refused(tmp_path):
    folder_of_pictures(tmp_path, ["a.png", "b.png"])
    (tmp_path / "mos.csv").write_text("image,mos,mos\na.png,1,5\nb.png,2,4\n")
    with pytest.raises(ValueError, match="has the column 'mos' more than once; expected it once: rename or remove one"):
        load_dataset("csv", tmp_path)
    (tmp_path / "mos.csv").write_text("image,mos,,\na.png,1,,\nb.png,2,,\n")  # columns without a name hold nothing
    assert [sample.mos for sample in load_dataset("csv", tmp_path)] == [1, 2]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_letters_of_another_form_and_backslashes_name_the_same_file(tmp_path, form):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    names = [f"köln/größe {index}.png" for index in range(2)] + ["plain.png"]
    folder_of_pictures(tmp_path, [unicodedata.normalize(form, name) for name in names])
    written = [unicodedata.normalize(other, name).replace("/", "\\") for name in names]
    rows = "".join(f"{name},{index}\n" for index, name in enumerate(written))
    (tmp_path / "mos.csv").write_text(f"image,mos\n{rows}", "utf-8")
    found = load_dataset("csv", tmp_path)
    assert [sample.image for sample in found] == [tmp_path / unicodedata.normalize(form, name) for name in names]
    again = unicodedata.normalize(form, names[0])
    (tmp_path / "mos.csv").write_text(f"image,mos\n{rows}{again},9\n", "utf-8")  # one file, written in both forms
    with pytest.raises(ValueError, match="comes more than once"):
        load_dataset("csv", tmp_path)
    (tmp_path / "mos.csv").write_text(f"image,mos\n{rows}gone\\x.png,9\n", "utf-8")
    with pytest.raises(FileNotFoundError, match="1 of 4 pictures are missing"):
        load_dataset("csv", tmp_path)
