"""A question-guided method that reads no attention: embeddings of the question's own tokens."""

from dataclasses import dataclass

from torch.nn.functional import normalize

from stsimdiff.compressors.base import ScoreCompressor


@dataclass(frozen=True)
class QuestionRelevance(ScoreCompressor):
    """Keeps the tokens that are most like a token of the question, by the cosine of their embeddings."""

    def score(self, tokens, layout):
        asked = tokens.view.states(layout.asked)  # (q, D), as they enter layer 0
        return (normalize(tokens.features.float()) @ normalize(asked.float()).T).amax(dim=1)
