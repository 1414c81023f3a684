"""Drawing of the embedded dataset: paint, objects, grounds, contexts, scenes and saliency."""
