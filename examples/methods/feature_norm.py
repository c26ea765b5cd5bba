"""The shortest method: a score for each token."""

from dataclasses import dataclass

from stsimdiff.compressors.base import ScoreCompressor


@dataclass(frozen=True)
class FeatureNorm(ScoreCompressor):
    """Keeps the tokens of the largest norm."""

    def score(self, tokens, layout):
        return tokens.features.float().norm(dim=1)
