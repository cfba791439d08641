"""What exists: facts about nodes and devices, and the arrays that the engines work on."""
