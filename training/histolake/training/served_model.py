"""How MLflow itself loads one of our models: a generic Python function from pictures or sentences to vectors.

Our own serving reads the model folder directly; this is for everybody else's tools. MLflow runs this file when it loads
the model ("models from code"), so nothing is pickled.
"""

from __future__ import annotations

import base64
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class HistolakeModel(PythonModel):
    """Columns `image` (base64 of JPEG or PNG) and `sentence` (gene symbols); exactly one is filled in each row."""

    def load_context(self, context: Any) -> None:
        from histolake.training.models import load_model

        self.model = load_model(context.artifacts["model"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        vectors: list[list[float]] = []
        for row in model_input.to_dict("records"):
            image, sentence = row.get("image"), row.get("sentence")
            if isinstance(image, str) == isinstance(sentence, str):
                raise ValueError("Each row needs either an image (base64) or a sentence, and not both.")
            made_1D = (
                self.model.embed_images([base64.b64decode(image)])
                if isinstance(image, str)
                else self.model.embed_sentences([str(sentence)])
            )
            vectors.append(made_1D[0].tolist())
        return pd.DataFrame({"vector": vectors})


set_model(HistolakeModel())
