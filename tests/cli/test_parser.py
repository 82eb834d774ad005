from __future__ import annotations

from collections.abc import Callable

import pytest

from nnssl.cli import classify, embed, evaluate, pretrain, visualize
from nnssl.cli.parser import Parser

RUN = ["-d", "500", "-m", "vox2vec"]
EMBED = ["-m", "run", "-i", "17", "-o", "out"]


@pytest.mark.parametrize(
    ("parser", "argv", "said"),
    [
        (pretrain.parser, ["-d", "500"], "missing: -m METHOD"),
        (embed.parser, [], "missing: -m RUN, -i IMAGES, -o FOLDER"),
        (evaluate.parser, ["truth"], "missing: PRED_FOLDER"),
        (visualize.parser, [], "missing: KIND, one of similarity, pca, tsne, matches, views, reconstruction"),
        (embed.parser, [*EMBED, "-overwrite"], "there is no option -overwrite; did you mean --overwrite?"),
        (pretrain.parser, [*RUN, "-fold", "0"], "no option -fold; did you mean -f FOLD?"),
        (pretrain.parser, ["-d", "500", "--method=sam"], "no option --method; did you mean -m METHOD?"),
        (pretrain.parser, [*RUN, "-num_epochs", "5"], "-num_epochs; those of the training are given as -set KEY"),
        (visualize.parser, ["pca", "-m", "run", "-image", "a"], "no option -image; did you mean -i IMAGE?"),
        (pretrain.parser, [*RUN, "-device", "gpu"], "-device: invalid choice: 'gpu'"),
        (pretrain.parser, [*RUN, "--over", "--all", "-num", "2", "-np"], "-np: expected one argument"),
    ],
)  # fmt: skip
def test_parser__a_mistake_is_a_sentence_and_a_line_to_type(
    parser: Callable[[], Parser], argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(argv)
    error, example, more = capsys.readouterr().err.replace("\\\n", "").splitlines()
    assert stopped.value.code == 2 and error.startswith("error: ") and said in error
    assert example.startswith("example: nnssl_") and more.startswith("all options: nnssl_") and more.endswith(" --help")


def test_parser__reads_what_argparse_reads() -> None:
    given = pretrain.parser().parse_args(["-d500", "-m=vox2vec", "-f0", "--overw", "-set", "seed=1"])
    assert (given.dataset_ids, given.method, given.fold, given.overwrite) == (["500"], "vox2vec", "0", True)
    assert given.options == ["seed=1"] == pretrain.parser().parse_args([*RUN, "-o", "seed=1"]).options
    point = visualize.parser().parse_args(["pca", *EMBED[:2], "-i", "a", "-o", "b", "-p", "-30", "1", "-.5"]).point
    assert point == [-30, 1, -0.5]


def test_parser__its_help_begins_with_a_line_to_type() -> None:
    line, about, usage, *_ = classify.parser().format_help().split("\n\n")
    assert line.startswith("nnssl_classify -d 600 -m ") and about.startswith("Classify whole scans")
    assert usage.startswith("usage: nnssl_classify ")
    codes = " ".join(classify.parser().format_help().rsplit("exit codes: ", 1)[1].split())
    assert codes.startswith("0 done; 1 an error; 2 a mistake in the options; 75 ") and codes.endswith(
        "130 stopped by Ctrl-C"
    )
