// The API calls of the page, to copy.

export default {
  template: `
    <dialog ref="dialog" class="ac-drawer" aria-labelledby="snippets-title" @click.self="$refs.dialog.close()" data-testid="snippets">
      <header><h2 id="snippets-title">API calls of this page</h2>
        <button type="button" class="ac-button" autofocus @click="$refs.dialog.close()">Close</button></header>
      <section v-for="snippet in snippets" :key="snippet.title">
        <h3>{{ snippet.title }}</h3>
        <div v-for="kind in ['curl', 'python']" class="ac-snippet">
          <pre tabindex="0" :data-snippet="snippet.title + ' ' + kind"><code>{{ snippet[kind] }}</code></pre>
          <button type="button" class="ac-button" :aria-label="'Copy ' + kind + ': ' + snippet.title" @click="copy(snippet[kind], $event.target)">Copy</button>
        </div>
      </section>
    </dialog>`,
  props: { snippets: Array },
  methods: {
    async open() {
      await this.$nextTick();
      if (!this.$refs.dialog.open) this.$refs.dialog.showModal();
    },
    async copy(text, button) {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Copy failed";
      }
      setTimeout(() => (button.textContent = "Copy"), 1500);
    },
  },
};
