/* Keeps what the page loads, so that it opens without a connection. A newer Space has another name for the cache. */

const NAME = "lvit-browser-{{ digest }}";
const FIRST = ["./", ...{{ files | tojson }}];

self.addEventListener("install", (event) => event.waitUntil(keepFirst()));
self.addEventListener("activate", (event) => event.waitUntil(takeOver()));
self.addEventListener("fetch", (event) => event.respondWith(answer(event)));

async function keepFirst() {
  const cache = await caches.open(NAME);
  await cache.addAll(FIRST.map((name) => new Request(name, { cache: "no-cache" })));
}

async function takeOver() {
  const old = (await caches.keys()).filter((name) => name.startsWith("lvit-browser-") && name !== NAME);
  await Promise.all(old.map((name) => caches.delete(name)));
  await self.clients.claim();
}

async function answer(event) {
  const { request } = event;
  if (new URL(request.url).origin !== self.location.origin) return Response.error(); // nothing leaves
  if (request.method !== "GET") return fetch(request);
  const cache = await caches.open(NAME);
  const kept = await cache.match(request, { ignoreSearch: true });
  if (kept) return kept;
  const response = await fetch(request);
  if (response.status === 200) event.waitUntil(cache.put(request, response.clone()));
  return response;
}
