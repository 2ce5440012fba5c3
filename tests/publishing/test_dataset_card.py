from pathlib import Path

import datasets
import pytest
from data_layouts import make_pair, write_csv_files, write_reference_layout
from huggingface_hub import DatasetCard, constants
from loopback_hub import LoopbackHub
from PIL import Image
from typer.testing import CliRunner, Result

from lvit_cli.main import app
from lvit_hf.publishing.dataset_card import size_category


ORIGIN = {"--license": "cc-by-4.0", "--source": "Noise of [a generator](https://example.org)."}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def data(tmp_path) -> Path:
    """Three images in each split, of which one lies in both, one has an empty mask, and three share a caption."""
    folder = tmp_path / "data"
    write_csv_files(folder)
    make_pair(0)[0].save(folder / "valid" / "images" / "case-1.png")
    make_pair(0)[1].save(folder / "valid" / "masks" / "case-1.png")
    Image.new("L", make_pair(2)[0].size).save(folder / "train" / "masks" / "case-2.png")
    table = (folder / "train.csv").read_text(encoding="utf-8-sig")
    shared = '"one infected area, upper left lung"'
    (folder / "train.csv").write_text(table.replace('"two infected areas"', shared).replace('""', '"Mr Doe, a dog"'))
    return folder


def dry_run(data: Path, checkpoint: Path, **options: str) -> Result:
    given = {**ORIGIN, **{f"--{name.replace('_', '-')}": value for name, value in options.items()}}
    arguments = [word for pair in given.items() for word in pair]
    command = ["push-dataset-card", str(data), "--repo-id", "someone/data", "--model", str(checkpoint), "--dry-run"]
    return CliRunner().invoke(app, [*command, *arguments])


def read_card(result: Result) -> DatasetCard:
    assert result.exit_code == 0, result.output
    return DatasetCard(result.stdout[result.stdout.index("---\n") :])


def test_front_matter_passes_the_hubs_validation(data, checkpoint, monkeypatch):
    hub = LoopbackHub({})
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    card = read_card(dry_run(data, checkpoint, language="de"))
    card.validate()
    assert (card.data.license, card.data.language, card.data.pretty_name) == ("cc-by-4.0", ["de"], "data")
    assert (card.data.task_categories, card.data.size_categories) == (["image-segmentation"], ["n<1K"])
    [config] = card.data.configs
    assert [file["split"] for file in config["data_files"]] == ["train", "validation"]
    for license_id, sentence in (("mine-1.0", "license"), ("cc-by-4.0", "language")):
        language = "English" if sentence == "language" else "en"
        with pytest.raises(ValueError, match=sentence):
            read_card(dry_run(data, checkpoint, license=license_id, language=language)).validate()
    hub.stop()


def test_the_card_holds_what_the_check_counts_and_nothing_of_one_patient(data, checkpoint):
    text = read_card(dry_run(data, checkpoint, terms="Name the generator.", name="Noise")).text
    assert "# Noise" in text and "6 medical images with masks and captions" in text
    assert ORIGIN["--source"] in text and "Licence: `cc-by-4.0`. Name the generator." in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    splits = {row[0]: row for row in rows if len(row) == 6 and row[1] == "3"}
    assert set(splits) == {"train", "validation"}
    assert splits["train"][2] == "20 x 12 (1); 20 x 13 (1); 20 x 14 (1)"
    assert (splits["train"][3], splits["train"][5], splits["validation"][5]) == ("RGB (3)", "1", "0")
    assert "1 in several\nsplits, 0 several times in one" in text
    captions = {row[0]: row for row in rows if row[1] == "`text`"}
    assert captions["train"][2:] == ["2", "0", "7", "lung infection (2); none (1)"]
    assert captions["validation"][2:4] == ["2", "1"]
    assert '2 images of the split train have: "one infected area, upper left lung"' in text
    for secret in ("Doe", "case-", str(data.parent)):
        assert secret not in text
    assert "lvit evaluate MODEL someone/data" in text


def test_a_dry_run_tells_the_size_of_the_card_alone(data, checkpoint):
    result = dry_run(data, checkpoint)
    listed, total = result.stdout.splitlines()[:2]
    assert listed.split()[1:] == ["bytes", "README.md"] and total.split()[1:] == ["bytes", "1", "file"]
    assert int(listed.split()[0].replace(",", "")) == len(str(read_card(result)).rstrip("\n").encode()) + 1


def test_a_template_of_the_users_own(data, checkpoint, tmp_path):
    template = tmp_path / "mine.md"
    template.write_text("---\n{{ card_data }}\n---\n# Mine\n\n{{ images }} of USER/NAME, drawn by two radiologists.\n")
    card = read_card(dry_run(data, checkpoint, template=str(template)))
    assert card.data.license == "cc-by-4.0" and "6 of someone/data, drawn by two radiologists." in card.text


def spoil_mask(data: Path):
    (data / "train" / "masks" / "case-0.png").write_bytes(b"x")


def write_template(content: str):
    def write(data: Path):
        (data / "mine.md").write_text(content)

    return write


@pytest.mark.parametrize(
    "spoil, options, message",
    [
        (spoil_mask, {}, "has 1 problem: lvit data check names"),
        (None, {"license": " "}, "needs a licence"),
        (None, {"source": ""}, "needs a licence and a source"),
        (None, {"license": "other"}, "names no terms: say with --terms"),
        (write_template("---\nlanguage: en\n---\n"), {"template": "mine.md"}, "names no license"),
        (write_template("{{ unheard_of }}"), {"template": "mine.md"}, "is no template"),
        (write_template("---\n][\n---\n"), {"template": "mine.md"}, "cannot be read"),
        (None, {"template": "mine.md"}, "mine.md does not exist"),
        (None, {"repo_id": "no/good/name"}, "Repo id must"),
    ],
)
def test_what_keeps_a_card_from_being_written_is_said_in_a_sentence(data, checkpoint, spoil, options, message):
    if spoil:
        spoil(data)
    if "template" in options:
        options = {**options, "template": str(data / "mine.md")}
    result = dry_run(data, checkpoint, **options)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.exception
    assert result.stderr.splitlines()[-1].startswith("Error: ") and message in result.stderr


def test_without_a_licence_or_a_source_there_is_no_card(data):
    for missing in ORIGIN:
        given = [word for pair in ORIGIN.items() for word in pair if pair[0] != missing]
        result = CliRunner().invoke(app, ["push-dataset-card", str(data), "--repo-id", "someone/data", *given])
        assert result.exit_code == 2 and missing in result.stderr


def test_without_captions_none_are_promised(checkpoint, tmp_path):
    write_reference_layout(tmp_path / "data")
    import pandas

    for folder in ("Train_Folder", "Val_Folder"):
        path = tmp_path / "data" / folder / "some_text.xlsx"
        pandas.read_excel(path, dtype=str).assign(Description="").to_excel(path, index=False)
    text = read_card(dry_run(tmp_path / "data", checkpoint)).text
    assert "6 medical images with masks, for text-guided" in text


@pytest.mark.parametrize(
    "images, category", [(999, "n<1K"), (1000, "1K<n<10K"), (7145, "1K<n<10K"), (10_000, "10K<n<100K")]
)
def test_size_categories_are_those_of_the_hub(images, category):
    assert size_category(images) == category
