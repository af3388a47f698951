// The strip of live figures. It counts the seconds since the last figures itself, so that a silent server shows.

export default {
  template: `
    <section class="ac-strip" aria-label="Live figures" :class="{stale: stale}" data-testid="strip">
      <div class="ac-pulse" :class="{off: !connected || stale}" :key="beat"><i></i>
        <span>{{ !connected ? 'connecting…' : stale ? 'stale: ' + age + ' s' : 'live' }}</span></div>
      <dl tabindex="0"><div v-for="tile in tiles" :key="tile.name" :title="tile.title" :data-figure="tile.name">
        <dt>{{ tile.name }}</dt><dd>{{ tile.value }}<small v-if="tile.unit"> {{ tile.unit }}</small></dd>
      </div></dl>
      <a href="/live" class="ac-more">Dashboard</a>
    </section>`,
  props: { tiles: Array, connected: Boolean, beat: Number },
  data() {
    return { heard: Date.now(), age: 0 };
  },
  computed: {
    stale() {
      return this.tiles.length > 0 && this.age > 10;
    },
  },
  watch: {
    beat() {
      this.heard = Date.now();
      this.age = 0;
    },
  },
  mounted() {
    this.clock = setInterval(() => (this.age = Math.round((Date.now() - this.heard) / 1000)), 1000);
  },
  unmounted() {
    clearInterval(this.clock);
  },
};
