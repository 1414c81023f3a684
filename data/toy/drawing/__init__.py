"""How the embedded dataset is drawn: paint, objects, grounds, contexts, scenes, saliency."""
