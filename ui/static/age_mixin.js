// Age in seconds of the data of a component: restarts when the prop `version` changes.
// The browser counts, so that a silent server is visible. After 10 seconds the data is stale.

const STALE_S = 10;

export const age = {
  props: { version: Number },
  data() {
    return { updated: Date.now(), age: 0 };
  },
  computed: {
    stale() {
      return this.age > STALE_S;
    },
  },
  watch: {
    version() {
      this.updated = Date.now();
      this.age = 0;
    },
  },
  mounted() {
    this.clock = setInterval(() => (this.age = Math.round((Date.now() - this.updated) / 1000)), 1000);
  },
  unmounted() {
    clearInterval(this.clock);
  },
};
