"""What goes over the wire, and how is it documented? The OpenAPI document is made from this."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, Field

CONTENT = ("image/jpeg", "image/png", "image/webp", "image/gif")  # those that the document names; others are taken, too


class Like(BaseModel):
    """A training image that looks much like the one that was sent."""

    label: str
    similarity: float = Field(description="Cosine of what the model sees in both, up to 1.")


class Answer(BaseModel):
    """What the model says of one image, or what was wrong with it."""

    name: str | None = Field(description="The file's name as it was sent; null where none was.")
    label: str | None = Field(description="The most probable class; null with an error, or where no label is given.")
    labels: list[str] = Field(description="All labels that are given: one, unless an image may have several.")
    probability: float | None = Field(description="Of `label`, calibrated, 0..1.")
    probabilities: dict[str, float] = Field(description="Of every class, or of the `top` ones, the largest first.")
    unknown: bool | None = Field(description="Whether it is probably none of the classes; null where none can tell.")
    unknown_score: float | None = Field(description="How unlike the training images it is: theirs are about 1.")
    prediction_set: list[str] | None = Field(description="With `sets`: the classes it may be, the likeliest first.")
    heat_map: str | None = Field(description="With `heat_map`: a JPEG as a data: address, to be laid over the image.")
    nearest: list[Like] | None = Field(description="With `nearest`: null where the run remembers none.")
    error: str | None = Field(description="Why there is no answer: the kind of fault, and the detail.")


class Answers(BaseModel):
    """The answer to a request: one entry for each image, in the order in which they were sent."""

    model: str
    version: str = Field(description="Digest of the model's files: another model has another one.")
    results: list[Answer]


class About(BaseModel):
    """What a model is."""

    name: str
    version: str
    backbone: str
    cut: str
    classes: list[str]
    several_labels: bool = Field(description="Whether an image may have several labels, or none.")
    size_px: int
    accuracy: float = Field(description="As it was measured, 0..1, with its 95% interval.")
    accuracy_low: float
    accuracy_high: float
    measured_on: str


class Models(BaseModel):
    """Every model that can be asked; the first one answers where none is named."""

    models: list[About]


class Limit(BaseModel):
    """What one request may take."""

    request_bytes: int
    image_bytes: int
    pixels: int
    images: int


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str


EXAMPLE = {
    "model": "flowers", "version": "5b0c9f9a1f6e4d0e",
    "results": [{
        "name": "one.jpg", "label": "daisy", "labels": ["daisy"], "probability": 0.94,
        "probabilities": {"daisy": 0.94, "sunflower": 0.04, "tulip": 0.02}, "unknown": False, "unknown_score": 0.97,
        "prediction_set": None, "heat_map": None, "nearest": None, "error": None,
    }],
}  # fmt: skip
REASONS = {
    400: "No image in the request, or a form that cannot be read.",
    401: "The server asks for a key, and it was not sent.",
    404: "No model of this name.",
    408: "The request did not come whole in time.",
    413: "Too many bytes, pixels or images.",
    415: "Neither an image nor a form of images.",
    422: "An option outside its range, or the only image of the request cannot be read.",
    500: "The model failed. The server's log says why.",
    503: "Too many requests or images are waiting; try again after the seconds of `Retry-After`.",
    504: "The answer took too long.",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": said, "content": {"application/problem+json": {"schema": Problem.model_json_schema()}}}
    for status, said in REASONS.items()
}
BINARY = {"schema": {"type": "string", "format": "binary"}}
BODY = {
    "required": True,
    "description": "One image as it is (any format that is read), or several as a form's files of any field names.",
    "content": {
        **dict.fromkeys((*CONTENT, "application/octet-stream"), BINARY),
        "multipart/form-data": {
            "schema": {
                "type": "object", "required": ["image"],
                "properties": {"image": {"type": "array", "minItems": 1, "items": BINARY["schema"]}},
            },
        },
    },
}  # fmt: skip
Sets = Annotated[
    float | None, Query(gt=0, lt=1, description="Also the classes one of which it is with this probability: 0.9.")
]
FalseAlarm = Annotated[
    float | None, Query(gt=0, lt=1, description="Share of images of the classes that may be taken for unknown.")
]
HeatMap = Annotated[bool, Query(description="Also where the model looked.")]
Nearest = Annotated[int, Query(ge=0, le=5, description="Also so many training images that are most alike.")]
Top = Annotated[int | None, Query(ge=1, le=100_000, description="Only so many classes, the most probable ones.")]

ANSWERED: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"example": EXAMPLE}}}, **PROBLEMS}
