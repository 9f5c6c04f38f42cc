"""Networks, in torch. Nothing here is imported before somebody trains, exports, or asks for torch by name."""
