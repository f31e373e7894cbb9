"""The picture of the rooms is that of the import graph."""

from tests import architecture


def test_the_picture_is_that_of_today() -> None:
    assert architecture.OUT.read_text("utf-8") == architecture.picture(), "run: make rooms"


def test_every_room_says_what_it_is_for() -> None:
    found = [*architecture.rooms("pvqae"), *architecture.rooms("flows")]
    assert not [room.name for room in found if not room.purpose.endswith(".")]
    assert not [room.name for room in found if len(room.purpose) > 90]  # it fits into its box
