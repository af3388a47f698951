// Lists side by side, the blend first. Items of the blend show their rank there; hovering over an item marks it in all lists.

export default {
  template: `
    <div class="ac-comparison" data-testid="comparison">
      <section v-for="(column, n) in columns" :key="column.key" class="ac-panel" :aria-label="column.name" :data-policy="column.key">
        <h2>{{ column.name }}</h2>
        <p class="ac-category">{{ column.what }}</p>
        <p v-if="column.fallback" class="ac-fallback">{{ column.fallback }}</p>
        <p v-if="n" class="ac-shared"><b>{{ column.shared }}</b> of {{ column.items.length }} are in the blend</p>
        <p v-else class="ac-shared">the reference for the others</p>
        <ol><li v-for="item in column.items" :key="item.id" :class="{shared: n && item.blend, lit: item.id === lit}" :style="{'--hue': item.hue}"
                @mouseenter="lit = item.id" @mouseleave="lit = ''" @focusin="lit = item.id">
          <a :href="item.href">{{ item.title }}</a><small>{{ item.category }}<template v-if="n && item.blend"> · {{ item.blend }} in the blend</template></small></li></ol>
      </section>
    </div>`,
  props: { columns: Array },
  data() {
    return { lit: "" };
  },
};
