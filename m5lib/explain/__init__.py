"""Attribution, attention, faithfulness."""
