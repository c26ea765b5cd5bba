// What the page holds: its data, and parts that are packed, base64 of zlib, until they are needed.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

async function inflate(packed) {
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
