import tailwindcss from '@tailwindcss/vite'
import react from '@vitejs/plugin-react'
import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vite'

// The backend serves the API on `/` and these files below `/ui/`; `npm run dev` asks a backend on its usual port.
const backend = process.env.HONE_URL ?? 'http://127.0.0.1:8700'
const api = ['/api', '/training', '/datasets', '/v1', '/docs', '/openapi.json', '/health', '/ready']

export default defineConfig({
  base: '/ui/',
  plugins: [react(), tailwindcss()],
  resolve: { alias: { '@': fileURLToPath(new URL('./src', import.meta.url)) } },
  build: {
    target: 'es2022',
    // Files that are inlined would need `data:` in the content security policy.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    manifest: 'manifest.json',
  },
  server: {
    proxy: {
      ...Object.fromEntries(api.map((path) => [path, backend])),
      '/ws': { target: backend.replace(/^http/, 'ws'), ws: true },
    },
  },
})
