"""What images there are and how they become batches; and the embedded dataset."""
