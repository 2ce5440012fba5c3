/* Captions as tokens, as LViTProcessor makes them. */

import { Tokenizer } from "./tokenizers.mjs";

export async function openTokenizer() {
  const files = ["tokenizer.json", "tokenizer_config.json"].map(async (name) => (await fetch(name)).json());
  return new Tokenizer(...(await Promise.all(files)));
}

/* Ids of at most `longest` tokens, and the word of each, counted from 1: a token with ## goes on with the word before. */
export function tokenize(tokenizer, text, longest) {
  const { ids, tokens } = tokenizer.encode(text);
  const kept = ids.map((_, position) => position).filter((position) => position < longest - 1 || position === ids.length - 1);
  let words = 0;
  const wordIds = kept.map((position) => {
    if (position === 0 || position === ids.length - 1) return 0; // [CLS] and [SEP]
    words += tokens[position].startsWith("##") ? 0 : 1;
    return words;
  });
  return { ids: kept.map((position) => ids[position]), wordIds };
}
