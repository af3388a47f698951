"""The response models: precise in the OpenAPI document, tolerant in the client."""

from __future__ import annotations

from afterclick.api import Recommendations, RecommendedItem, Tier


def test_the_document_requires_every_field_that_is_always_sent() -> None:
    schema = Recommendations.model_json_schema(mode="serialization")
    assert set(schema["properties"]) - set(schema["required"]) == {"experiment", "next"}
    row = schema["$defs"]["RecommendedItem"]
    assert set(row["properties"]) - set(row["required"]) == {
        "attributions",
        "propensity",
        "ratings",
    }


def test_a_response_of_another_version_is_read() -> None:
    newer = b'{"user_id": "bob", "source": "trending", "items": [], "added_later": 1}'
    answer = Recommendations.model_validate_json(newer)
    assert answer.source is Tier.TRENDING
    assert answer.degraded is False
    item = RecommendedItem.model_validate({"item_id": "i1", "score": 1.0})
    assert (item.contributions, item.attributions) == ({}, None)
