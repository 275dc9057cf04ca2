"""Readers of the data sets, on small trees in the layouts as released, and how the sets are split."""

import csv
import io
import json
import math
import random
import unicodedata
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from PIL import Image
from scipy.io import savemat

from iqguide.training.datasets import READERS, load_dataset
from iqguide.training.sample import Sample
from iqguide.training.splits import named_split, official_split, pyiqa_split, seeded_splits, split_of_file


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


def bid(root):
    touch(root, "DatabaseImage0001.JPG", "databaseimage0012.jpg")
    rows = [["Image", "Average grade", None], [1, 2.5, None], [12, 4.0, None], [None, None, None]]
    write_xlsx(root / "DatabaseGrades.xlsx", rows)


def uhd_iqa(root):
    rows = [["1.jpg", 0.25, "training"], ["2.jpg", 0.5, "validation"], ["3.jpg", 0.75, "test"]]
    touch(root, *(f"{part}/{name}" for name, _, part in rows))
    write_csv(root / "uhd-iqa-metadata.csv", ["image_name", "quality_mos", "set"], *rows)


def pipal(root):
    touch(root, "Train_Ref/A0001.bmp", "Train_Ref/A0002.bmp", "Distortion_1/A0001_00_01.bmp")
    touch(root, "Distortion_2/A0002_01_00.bmp")
    (root / "Train_Label").mkdir()
    (root / "Train_Label/A0001.txt").write_text("A0001_00_01.bmp,1400.5\n")
    (root / "Train_Label/A0002.txt").write_text("A0002_01_00.bmp,1600.5\n\n")


def aigiqa_20k(root):
    rows = {"train": ["a.png", "a cat", 2.5], "val": ["b.png", "a dog", 1.0], "test": ["c.png", "a cat", 4.0]}
    for part, row in rows.items():
        touch(root, f"{part}/{row[0]}")
        write_csv(root / f"info_{part}.csv", ["name", "prompt", "mos"], row)


def aigciqa_2023(root):
    touch(root, *(f"Image/allimg/{n}.png" for n in range(10)))
    (root / "DATA/MOS").mkdir(parents=True)
    savemat(root / "DATA/MOS/mosz1.mat", {"MOSz": np.linspace(20, 65, 10)[:, None]})


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
    "koniq-10k-raw": koniq,
    "bid": bid,
    "uhd-iqa": uhd_iqa,
    "pipal": pipal,
    "aigiqa-20k": aigiqa_20k,
    "aigciqa2023": aigciqa_2023,
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
    assert normalised(samples) == [0.3, 0.5, 0.6, 0.9]  # the z-scored MOS of the official sets
    assert {sample.image.parent.name for sample in samples} == {"512x384"}
    raw = load_dataset("koniq-10k-raw", root)
    assert normalised(raw) == [0.125, 0.375, 0.5, 0.875]  # 1 to 5
    assert [sample.part for sample in samples] == ["train", "train", "validation", "test"]
    train, test = official_split(samples)
    assert (train.tolist(), test.tolist()) == ([0, 1, 2], [3])
    (root / "koniq10k_scores_and_distributions.csv").unlink()
    assert normalised(load_dataset("koniq-10k", root)) == normalised(samples)
    with pytest.raises(ValueError, match=r"a\.jpg; expected it in koniq10k_scores_and_dist"):
        load_dataset("koniq-10k-raw", root)
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
    samples = load_dataset("koniq-10k-raw" if name == "KonIQ-10k" else name.lower(), tmp_path)
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


# --- layouts that sets also come in ---


def test_koniq_says_which_of_two_sizes_is_read(tree, caplog):
    root = tree("koniq-10k")
    load_dataset("koniq-10k", root)
    assert "has two sizes; 512x384 is read" in caplog.text
    for path in (root / "512x384").iterdir():
        path.unlink()
    (root / "512x384").rmdir()
    caplog.clear()
    assert {sample.image.parent.name for sample in load_dataset("koniq-10k", root)} == {"1024x768"}
    assert not caplog.text


def test_flive_from_its_own_root(tree):
    """Its repository has the lists beside the pictures, in `database/`."""
    root = tree("flive")
    expected = load_dataset("flive", root)
    for name in ("labels_image.csv", "labels>640.csv"):
        (root / name).rename(root / "database" / name)
    (root / "database/labels>640.csv").rename(root / "database/labels640.csv")
    assert load_dataset("flive", root) == expected
    inside = load_dataset("flive", root / "database")
    assert [sample.part for sample in inside] == [sample.part for sample in expected]


def test_live_with_the_first_release_alone(tree):
    root = tree("live")
    expected = load_dataset("live", root)
    scores, originals = np.linspace(-2, 111, 982)[None], np.zeros((1, 982))
    originals[0, [0, 227]] = 1
    savemat(root / "dmos.mat", {"dmos": scores, "orgs": originals})
    (root / "dmos_realigned.mat").unlink()
    samples = load_dataset("live", root)
    assert normalised(samples) == normalised(expected)
    assert {sample.std for sample in samples} == {None}


def test_csiq_as_a_text_file(tree):
    root = tree("csiq")
    expected = {sample.image: (sample.mos, sample.reference) for sample in load_dataset("csiq", root)}
    lines = [f"{image.name} {mos}" for image, (mos, _) in expected.items()]
    (root / "csiq_label.txt").write_text("\n".join(lines) + "\n")
    (root / "csiq.DMOS.xlsx").unlink()
    assert {sample.image: (sample.mos, sample.reference) for sample in load_dataset("csiq", root)} == expected


def test_tid2013_has_deviations_where_their_file_is(tree):
    root = tree("tid2013")
    assert [sample.std for sample in load_dataset("tid2013", root)] == [None, None]
    (root / "mos_std.txt").write_text("0.13013\n0.2\n")
    assert [sample.std for sample in load_dataset("tid2013", root)] == [0.13013, 0.2]
    (root / "mos_std.txt").write_text("0.13013\n")
    refused("tid2013", root, ValueError, r"mos_std\.txt has 1 numbers and mos_with_names\.txt 2; expected as many")


def test_sets_of_photographs_and_generated_pictures(tree):
    assert normalised(load_dataset("bid", tree("bid"))) == [0.5, 0.8]
    uhd = load_dataset("uhd-iqa", tree("uhd-iqa"))
    assert [(s.normalised_mos, s.part) for s in uhd] == [(0.25, "train"), (0.5, "validation"), (0.75, "test")]
    drawn = load_dataset("aigiqa-20k", tree("aigiqa-20k"))
    assert [(s.normalised_mos, s.group, s.part) for s in drawn] == [
        (0.5, "a cat", "train"), (0.2, "a dog", "validation"), (0.8, "a cat", "test"),
    ]  # fmt: skip
    quality = load_dataset("aigciqa2023", tree("aigciqa2023"))
    assert normalised(quality)[:2] == [0.2, 0.25]
    assert [sample.group for sample in quality] == ["prompt 0"] * 4 + ["prompt 1"] * 4 + ["prompt 2"] * 2


def test_pipal_has_references_and_elo_scores(tree):
    samples = load_dataset("pipal", tree("pipal"))
    assert [sample.mos for sample in samples] == [1400.5, 1600.5]
    assert normalised(samples) == [0, 1]
    assert [sample.reference.name for sample in samples] == ["A0001.bmp", "A0002.bmp"]
    assert [sample.group for sample in samples] == ["A0001", "A0002"]


def test_lower_is_better_turns_a_scale_round(tree):
    root = tree("csv")
    assert normalised(load_dataset("csv", root, lower_is_better=True)) == [1, 0, 0.5]
    assert normalised(load_dataset("csv", root, (0, 100), lower_is_better=True)) == [0.9, 0.7, 0.8]
    assert load_dataset("csv", root, (100, 0)) == load_dataset("csv", root, (0, 100), lower_is_better=True)


# --- splits ---


def shuffled(count, times):
    """A list that Python's generator of seed 123 has shuffled so often."""
    order, generator = list(range(count)), random.Random(123)
    for _ in range(times):
        generator.shuffle(order)
    return order


def test_splits_of_iqa_pytorch():
    """The first four fifths of the list shuffled once, twice, ...; Python promises the generator, not our code."""
    for name, times in (("pyiqa", 1), ("pyiqa-1", 1), ("pyiqa-3", 3)):
        train, test = pyiqa_split("live-challenge", 1162, name)
        assert (len(train), len(test)) == (930, 232)
        assert set(test) == set(shuffled(1162, times)[930:])
        assert set(train) | set(test) == set(range(1162))
    for dataset, count in (("live-challenge", 1161), ("kadid-10k", 10125)):
        with pytest.raises(ValueError, match=f"{dataset} with {count} pictures has no split of IQA-PyTorch"):
            pyiqa_split(dataset, count)
    with pytest.raises(ValueError, match="split is 'pyiqa-11'; expected pyiqa, or pyiqa-1 to pyiqa-10"):
        pyiqa_split("spaq", 11125, "pyiqa-11")


def test_a_split_in_a_json_file(tree, tmp_path):
    samples, path = load_dataset("csv", tree("csv")), tmp_path / "test.json"
    deqa = [{"id": "c->0.5", "image": "koniq/images/c.png", "gt_score": 3.0, "level_probs": [0, 0, 1, 0, 0]}]
    for content, expected in (
        (deqa, ([0, 1], [2])),
        (["b.png"], ([0, 2], [1])),
        ({"train": ["a.png"], "test": ["b.png"]}, ([0], [1])),
        ({"train": [0, 2], "test": [1]}, ([0, 2], [1])),
    ):
        path.write_text(json.dumps(content))
        assert tuple(part.tolist() for part in named_split(samples, str(path), "csv")) == expected
    for content, message in (
        (["z.png"], r"names 'z\.png', which the data set does not have"),
        ([7], "names 7, which the data set does not have"),
        ({"train": ["a.png"]}, "has no list of test pictures"),
        ({"train": ["a.png"], "test": ["a.png"]}, "has pictures in both parts"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            split_of_file(samples, path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"test\.json cannot be read"):
        split_of_file(samples, path)
    with pytest.raises(ValueError, match="split is 'half'; expected a number, pyiqa, pyiqa-N"):
        named_split(samples, "half", "csv")


def test_six_to_two_to_two_by_reference():
    """A fifth of the references held out, a quarter of the rest for validation: 6:2:2, as full-reference papers do."""
    samples = [Sample(Path(f"{r}-{n}.png"), 1.0, group=f"r{r}") for r in range(25) for n in range(4)]
    train, test = seeded_splits(samples, 1)[0]
    rest = [samples[n] for n in train]
    learnt, chosen_by = seeded_splits(rest, 1, 0.25)[0]
    assert (len(learnt), len(chosen_by), len(test)) == (60, 20, 20)
    parts = [{rest[n].group for n in learnt}, {rest[n].group for n in chosen_by}, {samples[n].group for n in test}]
    assert [len(part) for part in parts] == [15, 5, 5]
    assert len(set.union(*parts)) == 25


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
    with pytest.raises(ValueError, match="the column 'mos' more than once"):
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
