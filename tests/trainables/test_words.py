from trainables.words import accuracies


def test_both_accuracies_stand_side_by_side_where_they_differ() -> None:
    both = accuracies({"test/acc": 0.5, "test/plain_acc": 0.75}, "test")
    assert both == "test/acc 0.5000 (mean over classes), test/plain_acc 0.7500 (share of all images)"
    assert accuracies({"test/acc": 0.5, "test/plain_acc": 0.50001}, "test") == "test/acc 0.5000"
    assert accuracies({"val/acc": 0.5}, "val", remark=", so far:") == "val/acc, so far: 0.5000"
