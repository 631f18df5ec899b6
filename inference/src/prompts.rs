//! The texts that models are judged on where none are given.

/// Plain texts of several kinds, written for this purpose.
pub const DEFAULT_PROMPTS: [&str; 8] = [
    "The river rose in the night. By morning the lower road was under water, and the people of the village carried their \
     things up to the church on the hill. Nobody was hurt, but it took three weeks before the bridge could be crossed again, \
     and longer before the fields were dry enough to plough.",
    "Water boils at a lower temperature on a high mountain than at the sea. The reason is pressure: a liquid boils when the \
     pressure of its vapour equals that of the air above it, and there is less air above a mountain. This is why rice and \
     beans take longer to cook there.",
    "Question: What is the difference between a virus and a bacterium?\nAnswer: A bacterium is a single living cell that can \
     feed and divide on its own. A virus is much smaller and is not a cell; it can only make copies of itself inside the \
     cells of other living things.",
    "To make a simple soup, cut two onions and fry them slowly in butter until they are soft. Add four potatoes in small \
     pieces, cover them with water, and let it cook for twenty minutes. Season with salt and pepper, and serve it with fresh \
     bread.",
    "The committee met on Tuesday to discuss the new budget. Members agreed that the school needed repairs, but they did not \
     agree on how to pay for them. One proposal was to raise the fee for parking in the centre of the town; another was to \
     sell a building that had been empty for ten years.",
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    if len(values) == 0:\n        \
     return 0\n    return total / len(values)\n",
    "Dear Anna, thank you for your letter and for the photographs of the garden. I had no idea that the apple trees had grown \
     so tall. We are all well here. Peter has started his new job in the city and comes home only at the end of the week, so \
     the house is quiet.",
    "In the early years of the century the company built small engines for boats. When the war began it was told to make parts \
     for aircraft instead, and its factory grew from forty workers to nearly a thousand. After the war there were no orders, \
     and the owners decided to try tractors.",
];
